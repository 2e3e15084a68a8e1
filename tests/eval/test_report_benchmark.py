"""The report benchmark from recipe to results.csv, and the report command on a scan, with a random language model."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.eval.report_world import write_bases, write_data
from voxelfm_hf.cli import app
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.eval.reports import benchmark as report_benchmark
from voxelfm_hf.eval.reports.agreement import compare_with_probe, finding_of
from voxelfm_hf.eval.reports.baselines import constant_report, retrieved_reports
from voxelfm_hf.failures import read_failures
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.report_writer import ReportWriter, patch_map
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import LabelError, ModelError, RecipeError

RECIPE = """
title: Small
reports:
  training: TRAINING
  id_column: id
  replicates: 50
  max_new_tokens: 4
  quick: {replicates: 20, rows: [constant, retrieval]}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_bases(folder)
    write_data(folder)
    (folder / "recipe.yaml").write_text(RECIPE.replace("TRAINING", str(folder / "training.yaml")))
    return folder


@pytest.fixture(scope="module")
def finished(world):
    report_benchmark.run(world / "recipe.yaml", world, world / "out")
    return world / "out"


def results(folder) -> dict:
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["encoder"], row["target"], row["metric"]): row for row in rows}


def test_every_row_is_scored_on_the_same_scans(finished):
    rows = results(finished)
    assert {encoder for encoder, *_ in rows} == set(report_benchmark.ROWS)
    assert {row["task"] for row in rows.values()} == {"report"} and {row["n"] for row in rows.values()} == {"20"}
    assert {target for _, target, _ in rows} == {"macro", "visible", "Pleural effusion", "Emphysema"}
    assert {metric for _, _, metric in rows} == {"f1", "hallucinated", "missed", "bleu", "rouge_l", "meteor"}
    # The features tell the findings: what reads them finds them, what does not cannot.
    assert float(rows["retrieval", "macro", "f1"]["value"]) > 0.9
    assert float(rows["probes_template", "macro", "f1"]["value"]) > 0.7  # a pooler fitted on 12 scans
    assert float(rows["constant", "macro", "f1"]["value"]) == pytest.approx(2 / 3, abs=0.05)
    assert int(rows["adapter", "macro", "f1"]["train_rows"]) == 12
    page = (finished / "results.md").read_text()
    seen = json.loads((finished / "visible.json").read_text())  # of probes on the validation scans
    assert set(seen) == {"Pleural effusion", "Emphysema"} and min(seen.values()) >= 0.7
    assert "Visible: " in page and "| row | all findings | p | visible findings | p |" in page
    assert "| probes_template |" in page and "20 test scans, 12 to learn from" in page
    assert (finished / "examples.md").read_text().count("- adapter:") == 6
    with open(finished / "comparisons.csv", newline="") as file:
        compared = {(row["second"], row["target"]): row for row in csv.DictReader(file)}
    assert set(compared) == {(row, target) for row in report_benchmark.ROWS[1:] for target in ("macro", "visible")}
    for (row, target), difference in compared.items():
        expected = float(rows["adapter", target, "f1"]["value"]) - float(rows[row, target, "f1"]["value"])
        assert float(difference["difference"]) == pytest.approx(expected)
        assert f"{float(difference['difference']):.3f} [" in page
    card = (finished / "adapter/stage2/model/README.md").read_text()
    assert "| probes_template |" in card and "voxelfm benchmark recipe.yaml" in card and "synthetic" not in card
    assert "1 process(es) on cpu" in card
    assert card.count("- written:") == 3 and "12 pairs of a scan" in card


def test_predictions_are_kept_and_used_again(finished, world, monkeypatch):
    table = pq.read_table(finished / "predictions/retrieval.parquet").to_pydict()
    assert len(table["written"]) == 20 and set(table["stated Emphysema"]) == {0, 1}
    monkeypatch.setattr(report_benchmark, "_make", None)
    before = (finished / "results.csv").read_text()
    report_benchmark.run(world / "recipe.yaml", world, finished)
    assert (finished / "results.csv").read_text() == before


def test_text_only_learns_from_shuffled_features_and_shuffled_shows_other_patients(
    finished, world, tmp_path, monkeypatch
):
    config = json.loads((finished / "text_only/stage1/model/config.json").read_text())
    assert config["fit"]["stage1"]["text_only"] is True
    assert json.loads((finished / "cls_only/stage1/model/config.json").read_text())["feature_tokens"] == "cls"
    assert not (finished / "shuffled").exists()
    again = tmp_path / "out"
    shutil.copytree(finished, again)
    (again / "predictions/shuffled.parquet").unlink()
    shown = []
    original = report_benchmark.tokens_of
    monkeypatch.setattr(report_benchmark, "tokens_of", lambda read, ids: shown.extend(ids) or original(read, ids))
    report_benchmark.run(world / "recipe.yaml", world, again)
    with open(world / "labels.csv", newline="") as file:
        patient = {f"{row['id']}.nii.gz": row["patient_id"] for row in csv.DictReader(file)}
    asked = pq.read_table(again / "predictions/shuffled.parquet").column("id").to_pylist()
    assert len(shown) == len(asked) == 20 and set(shown) <= set(asked)
    assert all(patient[other] != patient[one] for other, one in zip(shown, asked, strict=True))


def test_quick_and_wrong_recipes(world, tmp_path):
    report_benchmark.run(world / "recipe.yaml", world, tmp_path / "quick", quick=True)
    assert {encoder for encoder, *_ in results(tmp_path / "quick")} == {"constant", "retrieval"}
    with pytest.raises(RecipeError, match="needs --data FOLDER"):
        report_benchmark.run(world / "recipe.yaml", None, tmp_path / "none")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("reports: {rows: [magic]}")
    with pytest.raises(RecipeError, match="reports.rows takes adapter.*got magic"):
        report_benchmark.run(wrong, world, tmp_path / "wrong")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/store").symlink_to(world / "store")
    lines = (world / "labels.csv").read_text().replace("patient-2", "patient-0")
    (tmp_path / "mixed/labels.csv").write_text(lines)
    with pytest.raises(LabelError, match="patients in both train and test"):
        report_benchmark.run(world / "recipe.yaml", tmp_path / "mixed", tmp_path / "out")


@pytest.mark.parametrize(
    ("cell", "message"),
    [(" ", r"labels.csv: 1 rows have no split \(scan-0.nii.gz\)"), ("trian", "column split holds trian: use train")],
)
def test_a_row_of_no_split_is_refused(world, tmp_path, cell, message):
    table = (world / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(table.replace(",train,", f",{cell},", 1))
    (tmp_path / "store").symlink_to(world / "store")
    with pytest.raises(LabelError, match=message):
        report_benchmark.run(world / "recipe.yaml", tmp_path, tmp_path / "out")


def test_patients_are_not_counted_where_nobody_told_them_apart(world, tmp_path):
    report_benchmark.run(world / "recipe.yaml", world, tmp_path / "known", quick=True)
    assert {row["patients"] for row in results(tmp_path / "known").values()} == {"10"}
    (tmp_path / "store").symlink_to(world / "store")
    for header, counted, drawn in (("who", "", "scans"), ("PatientID", "10", "patients")):
        (tmp_path / "labels.csv").write_text((world / "labels.csv").read_text().replace("patient_id", header))
        report_benchmark.run(world / "recipe.yaml", tmp_path, tmp_path / header, quick=True)
        assert {row["patients"] for row in results(tmp_path / header).values()} == {counted}
        assert f"95 % intervals over {drawn} " in (tmp_path / header / "results.md").read_text()


def test_the_constant_is_the_best_training_report_and_retrieval_the_nearest():
    import torch

    train = ["No abnormal findings.", "Emphysema.", "Emphysema. Pleural effusion.", "Pleural effusion."]
    assert constant_report(train) == "Emphysema. Pleural effusion."
    known = [torch.tensor([[x, 1.0, 0.0]]) for x in (-1.0, 0.0, 1.0, 2.0)]
    assert retrieved_reports(train, known, [torch.tensor([[-5.0, 1.0, 0.0]])]) == [train[0]]


def test_text_and_probe_are_compared_by_finding():
    assert finding_of("pleural_effusion") == "Pleural effusion" and finding_of("malignant") is None
    assert finding_of("coronary_calcification") == "Coronary artery wall calcification"
    values = {"emphysema": 0.9, "pleural_effusion": 0.2, "malignant": 0.5}
    found = compare_with_probe("No emphysema. Small effusion.", values, {"emphysema": True, "pleural_effusion": False})
    assert [(a.finding, a.stated, a.positive, a.disagrees) for a in found] == [
        ("Emphysema", False, True, True),
        ("Pleural effusion", True, False, True),
    ]


def test_patch_values_lie_on_the_voxels_they_cover():
    geometry = VoxelFMGeometry((1, 2, 2), (0.0, 1.0, 0.0), (2.0, 5.0, 4.0), (1.0, 1.0, 1.0))
    drawn = patch_map(np.array([[[1.0, 2.0], [3.0, 4.0]]]), geometry, (2, 6, 4))
    nan = np.nan
    expected = [[nan] * 4, [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4], [nan] * 4]
    np.testing.assert_array_equal(drawn, [expected, expected])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    hu = np.random.default_rng(0).integers(-200, 400, (16, 12, 12)).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "chest.nii.gz"
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    write_nifti(Volume.from_array(hu, spacing=(2.0, 2.0, 2.0), affine=affine, source="made"), path)
    return path


def test_a_scan_and_its_features_give_the_same_report_and_attention_covers_the_grid(finished, scan):
    from voxelfm_hf.volumes import read_volume

    writer = ReportWriter(finished / "adapter/stage2/model", dtype="float32")
    volume = read_volume(scan)
    written = writer.write(volume, max_new_tokens=5)
    tokens, _ = writer.model.encode_scans(writer.processor.image_processor(volume)["pixel_values"])
    assert list(writer.write_all([tokens[0]], max_new_tokens=5)) == [written.text]
    assert written.attention.shape == volume.hu.shape
    inside = np.isfinite(written.attention)
    assert inside.any() and (written.attention[inside] >= 0).all()
    assert writer.write(volume, prior=[volume], max_new_tokens=3).attention.shape == volume.hu.shape


def voxelfm(*arguments):
    command = [sys.executable, "-m", "voxelfm_hf.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_writes_text_picture_and_json(finished, world, scan, tmp_path):
    model = finished / "adapter/stage2/model"
    done = voxelfm("report", scan, "nowhere.nii.gz", "--model", model, "--json", "--out", tmp_path / "out",
                   "--max-new-tokens", 4, "--merge", tmp_path / "merged")  # fmt: skip
    assert done.returncode == 3 and "nowhere.nii.gz" in done.stderr and "Traceback" not in done.stderr, done.stderr
    (failure,) = read_failures(tmp_path / "out").items()
    assert failure[0] == "nowhere.nii.gz" and failure[1] in done.stderr and "failures.csv" in done.stderr
    (line,) = done.stdout.splitlines()
    facts = json.loads(line)
    assert facts["scan"] == str(scan) and set(facts) == {"scan", "report", "organs"}
    assert (tmp_path / "out/chest.nii.gz/report.txt").read_text().strip() == facts["report"]
    assert (tmp_path / "out/chest.nii.gz/attention.png").stat().st_size > 1000
    assert ReportWriter(tmp_path / "merged").model.config.merged
    card = (tmp_path / "merged/README.md").read_text()
    assert "language model are contained" in card and "not contained" not in card
    assert "not contained" in (model / "README.md").read_text()


def test_what_is_missing_is_one_sentence(finished, world, tmp_path, scan):
    model = finished / "adapter/stage2/model"
    with pytest.raises(
        ModelError, match="no-such-model is neither a folder nor in the cache.*hf download no-such-model"
    ):
        ReportWriter(model, language_model="no-such-model")
    with pytest.raises(ModelError, match="was trained on features of .* name the right one as --vision-model"):
        ReportWriter(model, vision_model="tiny")
    with pytest.raises(ModelError, match="is no report model"):
        ReportWriter(world / "encoder")
    for names, said in (
        (["malignant"], "knows malignant, none of the 18 findings that are looked for in a text"),
        (["malignant", "emphysema"], "not compared, as no finding that is looked for in the text: malignant"),
    ):
        config = VoxelFMProbeConfig(
            task="classification", feature_size=24, id2label=dict(enumerate(names)), processor={"region_size": 8},
            base_model_name_or_path=str(world / "encoder"), base_model_hash=weight_hash(world / "encoder"),
        )  # fmt: skip
        VoxelFMProbe(config).save_pretrained(tmp_path / said[:4])
        command = ["report", str(scan), "--model", str(model), "--probe", str(tmp_path / said[:4])]
        refused = CliRunner().invoke(app, command)
        assert said in f"{refused.exception} {refused.output}"
    command = ["report", str(scan), "--model", str(model), "--prompt", "<image> <image>"]
    refused = CliRunner().invoke(app, command)
    assert "the prompt has 2 <image> and there is 1 scan" in f"{refused.exception} {refused.output}"
