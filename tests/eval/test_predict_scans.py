"""A probe over many scans: failures listed, reruns that do what is missing, label maps that lie over their files."""

import csv
import json
import shutil
from unittest.mock import ANY

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.eval.small_model import save_small_model
from voxelfm_hf.eval.probes.apply import ProbeReader
from voxelfm_hf.eval.probes.predict_scans import predict_scans
from voxelfm_hf.features import Task
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.pictures import save_picture
from voxelfm_hf.scan_list import Region, list_scans, read_regions
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import VoxelFMError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three scans in different orientations, one of them damaged, and a small model."""
    folder = tmp_path_factory.mktemp("made")
    save_small_model(folder / "model")
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    for name, signs in (("a", (1, 1, 1)), ("b", (-1, 1, -1))):
        hu = rng.integers(-900, 900, (20, 18, 10)).astype(np.int16)
        affine = np.diag([*(np.array(signs) * (1.0, 1.5, 2.0)), 1.0])
        affine[:3, 3] = (7, -3, 40)
        nib.save(nib.Nifti1Image(hu, affine), folder / "scans" / f"{name}.nii.gz")
    (folder / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    return folder


def make_reader(made, folder, *, region_size=None, **fields):
    torch.manual_seed(2)
    config = VoxelFMProbeConfig(
        feature_size=24,
        base_model_name_or_path=str(made / "model"),
        base_model_hash=weight_hash(made / "model"),
        processor={"max_patches": 100} | ({"region_size": region_size} if region_size else {}),
        **{"id2label": {0: "nodule"}, "problem_type": "multi_label_classification"} | fields,
    )
    VoxelFMProbe(config).save_pretrained(folder)
    return ProbeReader(folder)


def tasks_of(*inputs):
    return [Task(scan) for scan in list_scans(inputs)]


def test_a_rerun_does_only_what_is_missing_and_failures_are_listed(made, tmp_path, monkeypatch):
    reader = make_reader(made, tmp_path / "probe")
    out, shown, asked = tmp_path / "out", [], []
    answer = reader.answer
    monkeypatch.setattr(reader, "answer", lambda volume, **options: asked.append(volume) or answer(volume, **options))
    scans = made / "scans"
    summary = predict_scans(tasks_of(scans / "a.nii.gz", scans / "broken.nii.gz"), reader, out)
    assert (summary.added, summary.present, list(summary.failures)) == (1, 0, ["broken.nii.gz"])
    summary = predict_scans(
        tasks_of(scans), reader, out, on_answer=lambda task, name, facts: shown.append((name, facts))
    )
    assert (summary.added, summary.present, len(asked)) == (1, 1, 2)
    with open(out / "failures.csv") as file:
        (failed,) = csv.DictReader(file)
    assert failed["id"] == "broken.nii.gz" and "broken.nii.gz" in failed["reason"]
    with open(out / "predictions.csv") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"a.nii.gz", "b.nii.gz"} == {name for name, _ in shown}
    for name, facts in shown:
        assert facts | {"input_hash": ANY} == json.loads((out / name / "answer.json").read_text())
        assert float(rows[name]["nodule"]) == facts["values"]["nodule"]
        assert int(rows[name]["nodule_positive"]) == facts["positive"]["nodule"]
        assert (out / name / "picture.png").stat().st_size > 1000
    (out / "a.nii.gz" / "answer.json").unlink()
    summary = predict_scans(tasks_of(scans / "a.nii.gz"), reader, out)
    assert (summary.added, summary.present, summary.failures) == (1, 0, {})


def test_answers_of_another_probe_are_not_mixed(made, tmp_path):
    scans = tasks_of(made / "scans" / "a.nii.gz")
    predict_scans(scans, make_reader(made, tmp_path / "probe"), tmp_path / "out")
    other = make_reader(made, tmp_path / "other", temperature=[2.0])
    with torch.no_grad():
        other.probe.head.bias += 1
    with pytest.raises(VoxelFMError, match="holds answers of another probe"):
        predict_scans(scans, other, tmp_path / "out")
    with pytest.raises(VoxelFMError, match="holds no answers of a probe"):
        predict_scans(scans, other, made / "scans")


def test_ids_of_a_list_stand_for_paths_that_hold_names(made, tmp_path):
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,id\n{made / 'scans' / 'a.nii.gz'},P1\n{made / 'scans' / 'broken.nii.gz'},P2\n")
    summary = predict_scans(tasks_of(listed), make_reader(made, tmp_path / "probe"), tmp_path / "out")
    written = [path.read_text() for path in (tmp_path / "out").rglob("*.csv")]
    assert (tmp_path / "out" / "P1" / "answer.json").is_file()
    assert not any("nii.gz" in text for text in [*written, *summary.failures.values()])


def test_a_probe_of_regions_answers_each_region_and_asks_for_one(made, tmp_path):
    reader = make_reader(made, tmp_path / "probe", region_size=8)
    (tmp_path / "regions.csv").write_text(
        "scan,x,y,z,edge_mm,id\na.nii.gz,-10,-8,50,9,first\na.nii.gz,-14,-12,50,9,second\n"
    )
    scans = list_scans([made / "scans" / "a.nii.gz"])
    tasks = [Task(scan, tuple(cubes)) for scan, cubes in read_regions(tmp_path / "regions.csv", scans).items()]
    answers = {}
    summary = predict_scans(
        tasks, reader, tmp_path / "out", on_answer=lambda _, name, facts: answers.update({name: facts})
    )
    assert summary.failures == {} and answers["first"]["values"] != answers["second"]["values"]
    volume = read_volume(made / "scans" / "a.nii.gz")
    answer = reader.answer(volume, region=tasks[0].regions[1])
    # The first voxel's centre lies at (-26, -22.5, 40) mm and voxels are 1, 1.5 and 2 mm wide.
    region = ((3.25, 4.5, 8.0), (7.75, 10.5, 17.0))
    expected = save_picture(volume, tmp_path / "expected.png", position=(5, 7, 12), region=region, title=answer.text())
    sign = "positive" if answer.positive["nodule"] else "negative"
    assert answer.text() == f"nodule {answer.values['nodule']:.3g} ({sign})"
    assert (tmp_path / "out" / "second" / "picture.png").read_bytes() == expected.read_bytes()
    whole = predict_scans(tasks_of(made / "scans" / "a.nii.gz"), reader)
    assert "fitted on regions" in whole.failures["a.nii.gz"]
    of_scans = make_reader(made, tmp_path / "scans")
    assert "fitted on whole scans" in predict_scans(tasks, of_scans).failures["first"]


def test_a_picture_says_what_limits_its_answer(made, tmp_path):
    reader = make_reader(made, tmp_path / "probe", fit={"field_of_view_mm": [[200.0] * 3, [300.0] * 3]})
    predict_scans(tasks_of(made / "scans" / "a.nii.gz"), reader, tmp_path / "out")
    volume = read_volume(made / "scans" / "a.nii.gz")
    answer = reader.answer(volume)
    note = answer.notes[-1]
    assert "fitted on 200 x 200 x 200 to 300 x 300 x 300 mm" in note
    title = "; ".join((answer.text(), *answer.notes))
    expected = save_picture(volume, tmp_path / "expected.png", title=title)
    assert (tmp_path / "out" / "a.nii.gz" / "picture.png").read_bytes() == expected.read_bytes()


def test_a_label_map_lies_over_its_own_file(made, tmp_path):
    names = {0: "background", 1: "front", 2: "back"}
    config = {"task": "segmentation", "head": "subpatch", "head_hidden_size": 8, "voxels_per_patch": 2}
    reader = make_reader(made, tmp_path / "probe", id2label=names, problem_type=None, **config)
    head = reader.probe.head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        # The first hidden channel is the y position from -1 in front to 1 at the back: class 1 where it is below 0.
        head.position.weight[0, 1], head.mix.weight[0, 0, 1, 1, 1] = 1.0, 1.0
        head.position.weight[1, 1], head.mix.weight[1, 1, 1, 1, 1] = -1.0, 1.0
        weight = head.classifier.weight.view(8, 3, 8)
        weight[:, 1, 1], weight[:, 2, 0] = 100.0, 100.0
        head.classifier.bias.view(8, 3)[:, 0] = 1.0
    scans = made / "scans"
    predict_scans(tasks_of(scans / "a.nii.gz", scans / "b.nii.gz"), reader, tmp_path / "out")
    for name in ("a.nii.gz", "b.nii.gz"):
        scan, labels = nib.load(scans / name), nib.load(tmp_path / "out" / name / "labels.nii.gz")
        assert labels.shape == scan.shape
        np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-4)
        found = np.asarray(labels.dataobj)
        # RAS: y grows to the front
        y = nib.affines.apply_affine(scan.affine, np.stack(np.indices(scan.shape), -1))[..., 1]
        assert set(np.unique(found)) == {0, 1, 2} or set(np.unique(found)) == {1, 2}
        assert y[found == 1].mean() > y[found == 2].mean() + 5
        counts = dict(zip(names.values(), np.bincount(found.ravel().astype(int), minlength=3).tolist(), strict=True))
        assert json.loads((tmp_path / "out" / name / "answer.json").read_text())["voxels"] == counts
        with open(tmp_path / "out" / "predictions.csv") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        assert {key: int(rows[name][f"voxels_{key}"]) for key in counts} == counts


def test_a_point_is_reported_where_the_head_puts_it(made, tmp_path):
    reader = make_reader(
        made, tmp_path / "probe", task="localization", head="position", id2label={0: "spot"}, problem_type=None
    )
    summary = predict_scans(tasks_of(made / "scans" / "a.nii.gz"), reader, tmp_path / "out")
    assert summary.failures == {}
    (point,) = json.loads((tmp_path / "out" / "a.nii.gz" / "answer.json").read_text())["points_lps_mm"]
    corners = nib.affines.apply_affine(nib.load(made / "scans" / "a.nii.gz").affine, [[0, 0, 0], [19, 17, 9]])
    low, high = np.sort(corners * [-1, -1, 1], axis=0)
    assert (point >= low - 3).all() and (point <= high + 3).all()


def test_an_answer_is_never_given_for_another_scan_or_place_of_the_same_id(made, tmp_path):
    reader = make_reader(made, tmp_path / "probe")
    scan = made / "scans" / "a.nii.gz"
    for folder, source in (("first", "a.nii.gz"), ("other", "b.nii.gz")):
        (tmp_path / folder).mkdir()
        shutil.copy(made / "scans" / source, tmp_path / folder / "scan.nii.gz")
    predict_scans(tasks_of(tmp_path / "first" / "scan.nii.gz"), reader, tmp_path / "out")
    shown: list[str] = []
    refused = predict_scans(
        tasks_of(tmp_path / "other" / "scan.nii.gz"), reader, tmp_path / "out", on_answer=lambda *a: shown.append(a[1])
    )
    assert "scan.nii.gz" in refused.failures["scan.nii.gz"] and "another scan" in refused.failures["scan.nii.gz"]
    assert "--regions" not in refused.failures["scan.nii.gz"]
    assert (shown, refused.present, refused.added) == ([], 0, 0)
    # The same scan elsewhere is the same scan.
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    assert predict_scans(tasks_of(tmp_path / "moved" / "scan.nii.gz"), reader, tmp_path / "out").present == 1

    reader, (task,) = make_reader(made, tmp_path / "cubes", region_size=8), tasks_of(scan)
    places = [Task(task.scan, (Region("a#point", (x, -10.0, 60.0), 9.0),)) for x in (-10.0, -12.0)]
    predict_scans(places[:1], reader, tmp_path / "points")
    assert predict_scans(places[:1], reader, tmp_path / "points").present == 1
    refusal = predict_scans(places[1:], reader, tmp_path / "points").failures["a#point"]
    assert "another scan, place" in refusal and "name a new --out, or use --regions with ids" in refusal
