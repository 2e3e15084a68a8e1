"""The set of synthetic scans: the table is true of the files, outcomes follow their hazard, reports their findings."""

import csv
import json

import nibabel
import numpy as np
import pytest
from lifelines import WeibullAFTFitter
from lifelines.utils import concordance_index

from voxelfm_hf.data.phantom import LABELS, draw_facts, make_phantom
from voxelfm_hf.data.phantom.outcome import WEIBULL_SCALE_MONTHS, WEIBULL_SHAPE, draw_outcome, log_risk
from voxelfm_hf.data.phantom.reports import write_impression, write_report
from voxelfm_hf.data.phantom.scan_set import FIRST_SEED, PhantomScan, main, write_phantom_set
from voxelfm_hf.eval.datasets.phantoms import ACQUISITION, read
from voxelfm_hf.eval.labeller import FINDINGS, label_report
from voxelfm_hf.eval.labels import binary_target, number_target, point_target, survival_target
from voxelfm_hf.eval.splits import patient_groups, split_rows
from voxelfm_hf.eval.tasks.segmentation import read_mask
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import DatasetError

SHAPE = (24, 32, 32)
# Which of the 18 findings of chest CT reports a finding of the phantom is; the others do not occur.
REPORT_FINDINGS = {
    "pleural_effusion": "Pleural effusion",
    "emphysema": "Emphysema",
    "consolidation": "Consolidation",
    "cardiomegaly": "Cardiomegaly",
    "pericardial_effusion": "Pericardial effusion",
    "coronary_calcification": "Coronary artery wall calcification",
    "aortic_calcification": "Arterial wall calcification",
    "lymphadenopathy": "Lymphadenopathy",
    "hiatal_hernia": "Hiatal hernia",
    "medical_material": "Medical material",
    "lesion": "Lung nodule",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten people, two scans each, with label maps."""
    folder = tmp_path_factory.mktemp("phantoms")
    return read(folder, count=10, scans_each=2, shape=SHAPE, masks=True, workers=0)


@pytest.fixture(scope="module")
def facts():
    return [draw_facts(seed) for seed in range(FIRST_SEED, FIRST_SEED + 1000)]


def test_every_scan_has_a_true_row(made):
    assert len(made.labels) == len(made.tasks) == 20
    position = point_target(made.labels, [f"lesion_position_lps_mm_{axis}" for axis in "xyz"])
    for row in (0, 1, 13):
        seed, scanner = made.labels.column("seed")[row], made.labels.column("acquisition_seed")[row]
        again = make_phantom(seed, shape=SHAPE, acquisition_seed=scanner)
        volume = read_volume(made.tasks[row].scan.path)
        np.testing.assert_array_equal(volume.hu, again.volume.hu)
        np.testing.assert_allclose(volume.affine, again.volume.affine, atol=1e-4)
        mask = read_mask(made.folder / made.labels.column("label_file")[row], num_classes=len(LABELS))
        np.testing.assert_array_equal(mask.hu, again.labels)
        np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-6)
        if again.facts.lesion.type != "none":
            np.testing.assert_allclose(position[row, 0], again.facts.lesion.position_lps_mm)
    assert made.classes == tuple(LABELS)


def test_a_person_is_one_study_in_one_split(made):
    groups = patient_groups(made.labels)
    assert groups[::2].tolist() == groups[1::2].tolist() and len(set(groups)) == 10
    splits = split_rows(made.labels, groups)
    assert [(splits == name).sum() for name in ("train", "val", "test")] == [12, 4, 4]
    for name in ("fat_mm", "time", "log_risk", "lesion_type"):
        values = made.labels.column(name)
        assert values[::2] == values[1::2]
    noise = np.array(made.labels.column("noise_hu"))
    assert (noise[::2] != noise[1::2]).all()


def test_targets_and_acquisition_are_usable_columns(made):
    for name in ("emphysema", "lesion", "male", "kernel_sharp"):
        assert set(binary_target(made.labels, name)) == {0, 1}
    for name in (*ACQUISITION, "fat_mm", "trabecular_hu", "lung_hu", "effusion_mm"):
        assert np.isfinite(number_target(made.labels, name)).all()
    assert survival_target(made.labels).shape == (20, 2)
    assert min(made.labels.column("seed")) >= FIRST_SEED > 1_000_000


def test_what_is_absent_has_no_size(made):
    for kind, diameter, side, size in zip(
        *(made.labels.column(f"lesion_{name}") for name in ("type", "diameter_mm", "side", "size_mm")), strict=True
    ):
        # "none" is text in the table and must not have become an empty cell.
        assert kind is not None
        assert (kind == "none") == (diameter is None) == (side is None) == (size == 0)


def test_more_people_are_added_and_nothing_is_made_twice(made, tmp_path):
    write_phantom_set(tmp_path, count=2, shape=SHAPE)
    first = tmp_path / PhantomScan(FIRST_SEED).file
    stamp, rows = first.stat().st_mtime_ns, (tmp_path / "labels.csv").read_text().splitlines()
    (tmp_path / PhantomScan(FIRST_SEED + 1).file).unlink()  # as if it had been interrupted
    write_phantom_set(tmp_path, count=3, shape=SHAPE)
    assert first.stat().st_mtime_ns == stamp
    assert (tmp_path / "labels.csv").read_text().splitlines()[:3] == rows
    assert len(list((tmp_path / "images").iterdir())) == 3
    # A smaller wish leaves the set as it is and reads a part of it.
    data = read(tmp_path, count=1, scans_each=1, shape=SHAPE)
    assert len(data.labels) == len(data.tasks) == 1
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 4
    with pytest.raises(DatasetError, match="scans_each 1 and not 2: name another folder"):
        read(tmp_path, count=3, scans_each=2, shape=SHAPE)


def test_processes_and_one_process_write_the_same(process_server, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_phantom_set(one, count=3, shape=SHAPE, workers=0)
    write_phantom_set(two, count=3, shape=SHAPE, workers=2)
    for path in sorted(one.rglob("*.*")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_the_command_writes_a_set_and_refuses_another(tmp_path, capsys):
    shape = [str(n) for n in SHAPE]
    assert main([str(tmp_path / "set"), "--count", "2", "--shape", *shape]) == 0
    table = tmp_path / "set" / "labels.csv"
    assert capsys.readouterr().out.strip() == str(table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [nibabel.load(tmp_path / "set" / row["file"]).shape[::-1] for row in rows] == [SHAPE] * 2
    assert json.loads((tmp_path / "set" / "settings.json").read_text())["shape"] == list(SHAPE)
    assert main([str(tmp_path / "set"), "--count", "2", "--shape", *shape, "--masks"]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert main([str(tmp_path / "set"), "--count", "0"]) == 2
    assert capsys.readouterr().err.startswith("voxelfm: --count and --scans-each start at 1")


def test_survival_follows_the_stated_hazard(facts):
    """A Weibull regression on the true log risk finds shape, scale and a coefficient of one."""
    import pandas

    outcomes = [draw_outcome(one) for one in facts]
    table = pandas.DataFrame(
        {
            "risk": [outcome.log_risk for outcome in outcomes],
            "time": [outcome.time_months for outcome in outcomes],
            "event": [outcome.event for outcome in outcomes],
        }
    )
    # lifelines: S(t) = exp(-(t / exp(a + b risk)) ** rho), so b = -1 / rho for a log hazard ratio of one.
    fitted = WeibullAFTFitter().fit(table, "time", "event")
    rho = np.exp(fitted.params_["rho_", "Intercept"])
    assert rho == pytest.approx(WEIBULL_SHAPE, rel=0.08)
    assert -rho * fitted.params_["lambda_", "risk"] == pytest.approx(1, abs=0.12)
    assert np.exp(fitted.params_["lambda_", "Intercept"]) == pytest.approx(WEIBULL_SCALE_MONTHS, rel=0.2)
    assert 0.4 < table["event"].mean() < 0.8
    assert 0.7 < concordance_index(table["time"], -table["risk"], table["event"]) < 0.8


def test_risk_counts_what_it_says(facts):
    quiet = next(one for one in facts if not any(one.findings.labels().values()) and one.lesion.type == "none")
    assert log_risk(quiet) == pytest.approx(-0.006 * (quiet.body.trabecular_hu - 150))
    heart = next(
        one
        for one in facts
        if one.findings.labels() == {**quiet.findings.labels(), "cardiomegaly": 1} and one.lesion.type == "cavity"
    )
    assert log_risk(heart) == pytest.approx(0.8 - 0.006 * (heart.body.trabecular_hu - 150))
    # A least squares fit to everybody finds the stated weights back.
    drawn = [
        [
            one.findings.emphysema_fraction,
            one.findings.pleural_effusion_right_mm,
            one.findings.pleural_effusion_left_mm,
            one.findings.coronary_calcification,
            one.findings.cardiomegaly,
            one.findings.lymphadenopathy_mm,
            one.lesion.diameter_mm if one.lesion.type in ("solid", "spiculated") else 0.0,
            one.body.trabecular_hu - 150,
        ]
        for one in facts
    ]
    weights, *_ = np.linalg.lstsq(np.array(drawn, float), np.array([log_risk(one) for one in facts]), rcond=None)
    np.testing.assert_allclose(weights, [4, 0.03, 0.03, 0.08, 0.8, 0.03, 0.05, -0.006], rtol=1e-6)


def test_the_labeller_reads_the_findings_back(facts):
    """Every finding of every report, none missed and none invented; findings that phantoms lack are never found."""
    texts = [write_report(one) for one in facts]
    assert len(set(texts)) > 0.98 * len(texts)
    seen = dict.fromkeys(FINDINGS, 0)
    for one, text in zip(facts, texts, strict=True):
        present = {**one.findings.labels(), "lesion": int(one.lesion.type != "none")}
        stated = {name: present[finding] for finding, name in REPORT_FINDINGS.items()}
        # Reports count ground glass as opacity.
        stated["Lung opacity"] = int(one.lesion.type == "ground_glass")
        assert set(stated) <= set(FINDINGS)
        assert label_report(text) == {name: stated.get(name, 0) for name in FINDINGS}, text
        for name, value in stated.items():
            seen[name] += value
    assert sum(count > 30 for count in seen.values()) == 12


def test_impressions_name_the_same_findings_in_few_words(facts):
    texts = [write_impression(one) for one in facts]
    for one, text, report in zip(facts, texts, map(write_report, facts), strict=True):
        assert label_report(text) == label_report(report), text
        assert text == write_impression(one) and not any(character.isdigit() for character in text)
    assert len(set(texts)) > 0.8 * len(texts)
    assert np.mean([len(text.split()) for text in texts]) < 12


def test_reports_vary_with_the_scan_and_not_by_themselves(facts):
    one = facts[1]
    other = draw_facts(one.seed, acquisition_seed=7)
    assert write_report(one) == write_report(one) != write_report(other)
    assert label_report(write_report(one)) == label_report(write_report(other))
