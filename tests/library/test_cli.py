"""The command as a user meets it: output, exit codes, one-sentence errors."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def voxelfm(*arguments, **environment):
    command = [sys.executable, "-m", "voxelfm_hf.cli", *map(str, arguments)]
    kept = {**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=kept)


def test_help_names_every_command_and_teaches_by_example():
    from typer.main import get_command
    from typer.testing import CliRunner

    from voxelfm_hf.cli import app

    alone = voxelfm()
    assert alone.returncode == 2 and "Commands" in alone.stdout and not alone.stderr
    text = voxelfm("--help").stdout
    assert "Exit codes: 0" in text
    names = list(get_command(app).commands)
    assert len(names) >= 17
    for name in names:
        assert name in text
        help_text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120"}).output
        assert f"Example: voxelfm {name}" in help_text


@pytest.mark.parametrize(("typed", "offered"), [("pre", {"predict", "prepare"}), ("spa", {"space"})])
def test_the_shell_completes_commands_and_options(typed, offered):
    asked = {"_VOXELFM_COMPLETE": "complete_bash", "COMP_WORDS": f"voxelfm {typed}", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['voxelfm']; from voxelfm_hf.cli import main; main()"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd(), **asked}
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_info_of_every_format(scan_folder):
    done = voxelfm("info", scan_folder / "a.nii.gz", scan_folder / "series", scan_folder / "bad.npy", "--json")
    assert done.returncode == 3
    nifti, dicom, bad = map(json.loads, done.stdout.splitlines())
    assert nifti["shape_zyx"] == dicom["shape_zyx"] == [30, 40, 40]
    assert nifti["spacing_zyx_mm"] == dicom["spacing_zyx_mm"]
    assert "bad.npy" in bad["error"]
    text = voxelfm("info", scan_folder / "a.nii.gz")
    assert text.returncode == 0 and "30 x 40 x 40" in text.stdout
    centre = ", ".join(f"{v:g}" for v in nifti["centre_lps_mm"])
    assert any(
        line.startswith("centre lps mm") and line.endswith(centre) for line in map(str.strip, text.stdout.splitlines())
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "nowhere.nii.gz"),
        ("picture", "nowhere.nii.gz", "--out", "x.png"),
        ("convert", "nowhere.pth", "--config", "nowhere.yaml", "--out", "x"),
        ("embed", "nowhere", "--out", "x", "--model", "nowhere/at/all"),
        ("embed", "nowhere.npy", "--out", "x", "--spacing", "1,2"),
        ("embed", "--out", "x"),
        ("embed", "--wrong", "--out", "x"),
        ("embed", "--out"),
        ("search", "nowhere"),
        ("nonsense",),
    ],
)
def test_mistakes_are_a_sentence_and_exit_code_2(arguments, tmp_path):
    done = voxelfm(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("voxelfm: ") and done.stderr.count("\n") == 1


def test_embed_reports_failures_and_reruns(small_model, scan_folder, tmp_path):
    store = tmp_path / "store"
    first = voxelfm("embed", scan_folder, "--out", store, "--model", small_model, "--dtype", "float32")
    assert first.returncode == 3
    assert "3 added, 0 there before, 1 failed" in first.stdout and "bad.npy" in first.stderr
    (scan_folder / "bad.npy").unlink()
    again = voxelfm("embed", scan_folder, "--out", store, "--model", small_model, "--dtype", "float32")
    assert again.returncode == 0 and "0 added, 3 there before, 0 failed" in again.stdout
    assert again.stderr == ""


def test_two_processes_share_the_scans(small_model, scan_folder, tmp_path):
    from voxelfm_hf.store import FeatureStore

    one = tmp_path / "one"
    voxelfm("embed", scan_folder, "--out", one, "--model", small_model, "--dtype", "float32")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "voxelfm_hf.cli", "embed", str(scan_folder), "--out", str(tmp_path / "two")]
    command += ["--model", str(small_model), "--dtype", "float32", "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "1 failed" in done.stdout, done.stderr
    assert FeatureStore(tmp_path / "two").table.equals(FeatureStore(one).table)
    assert FeatureStore(tmp_path / "two").failures().keys() == {"bad.npy"}


def test_prepare_and_describe(scan_folder, tmp_path):
    import datasets

    done = voxelfm("prepare", scan_folder, "--out", tmp_path / "shards", "--name", "test", "--workers", "1")
    assert done.returncode == 3, done.stderr
    assert "failed: bad.npy: " in done.stderr
    assert "1 scans (1 new) in 1 shards, 2 repeated, 1 failed" in done.stdout and "bad.npy" in done.stderr
    rows = datasets.load_dataset(str(tmp_path / "shards"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 1
    described = voxelfm("describe", tmp_path / "shards")
    assert described.returncode == 0, described.stderr
    assert (tmp_path / "shards" / "description.json").is_file()
    described = voxelfm("describe", scan_folder, "--out", tmp_path / "about")
    assert described.returncode == 3 and "bad.npy" in described.stderr, described.stderr
    assert "bad.npy" in (tmp_path / "about" / "failures.csv").read_text()


def test_failures_of_one_reason_are_said_once(capsys):
    import typer

    from voxelfm_hf.cli.app import report_failures

    thin = {f"a/{n}.nii": f"/scans/a/{n}.nii: {n} slices are too thin: --pad" for n in range(3, 33)}
    with pytest.raises(typer.Exit) as ended:
        report_failures({**thin, "b.nii": "not a scan"}, Path("store/failures.csv"))
    assert ended.value.exit_code == 3
    assert capsys.readouterr().err.splitlines() == [
        "failed: /scans/a/3.nii: 3 slices are too thin: --pad",
        "        and 29 more for the same reason",
        "failed: b.nii: not a scan",
        "all listed in store/failures.csv",
    ]


def test_label(tmp_path):
    reports = tmp_path / "reports.csv"
    reports.write_text("id,text\na,No pleural effusion. Emphysema in both upper lobes.\nb,Normal chest.\n")
    done = voxelfm("label", reports, "--column", "text", "--id-column", "id", "--out", tmp_path / "labels.csv")
    assert done.returncode == 0, done.stderr
    header, first, second = (tmp_path / "labels.csv").read_text().splitlines()
    positive = [name for name, value in zip(header.split(","), first.split(","), strict=True) if value == "1"]
    assert positive == ["Emphysema"] and "1" not in second.split(",")
    assert "row numbers" not in done.stderr
    reports.write_text("site,text\nx,Emphysema.\ny,Normal chest.\n")
    done = voxelfm("label", reports, "--out", tmp_path / "numbered.csv")
    assert "note: no report has an id in a column of a usual name, so row numbers are the ids" in done.stderr
    assert done.returncode == 0 and "--id-column" in done.stderr
    reports.write_text("study,text\nx,Emphysema.\n,Normal chest.\n")
    for words in ((), ("--id-column", "study")):
        done = voxelfm("label", reports, *words, "--out", tmp_path / "numbered.csv")
        assert done.returncode == 0 and "1 of 2 reports have no id in" in done.stderr
        assert ("column study" in done.stderr) == bool(words)
    assert voxelfm("label", reports, "--column", "nowhere", "--out", tmp_path / "x.csv").returncode == 2


def test_picture_and_demo(small_model, scan_folder, tmp_path):
    from PIL import Image

    done = voxelfm("picture", scan_folder / "a.nii.gz", "--out", tmp_path / "a.png", "--model", small_model)
    assert done.returncode == 0, done.stderr
    plain = voxelfm("picture", scan_folder / "a.nii.gz", "--out", tmp_path / "b.png", "--no-features")
    assert plain.returncode == 0, plain.stderr
    with Image.open(tmp_path / "a.png") as with_features, Image.open(tmp_path / "b.png") as without:
        assert with_features.width == without.width and with_features.height > without.height
    demo = voxelfm("demo", "--out", tmp_path / "demo")
    assert demo.returncode == 0, demo.stderr
    assert "equal bit for bit" in demo.stdout and (tmp_path / "demo" / "picture-0.png").is_file()
    assert voxelfm("demo", "--out", tmp_path / "demo").returncode == 0


def test_probe_fits_and_answers_from_a_file(small_model, tmp_path):
    from voxelfm_hf.data.phantom import make_phantom
    from voxelfm_hf.data.write_scan import write_nifti

    lines = ["id,patient,effusion"]
    for seed in range(30):
        phantom = make_phantom(seed, shape=(24, 32, 32))
        write_nifti(phantom.volume, tmp_path / "scans" / f"{seed}.nii.gz")
        lines.append(f"{seed}.nii.gz,{seed},{phantom.facts.findings.labels()['pleural_effusion']}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    store, probe = tmp_path / "store", tmp_path / "probe"
    embedded = voxelfm("embed", tmp_path / "scans", "--out", store, "--model", small_model, "--workers", "0")
    assert embedded.returncode == 0, embedded.stderr
    arguments = ["probe", store, tmp_path / "labels.csv", "--task", "classification", "--target", "effusion"]
    fitted = voxelfm(*arguments, "--out", probe)
    assert fitted.returncode == 0, fitted.stderr
    assert "auroc" in fitted.stdout and (probe / "model.safetensors").is_file()
    # The backbone is a local folder, whose place the probe does not record.
    assert f"voxelfm predict SCAN --probe {probe} --model FOLDER_OF_THE_BACKBONE\n" in fitted.stdout
    assert "--probe THIS_FOLDER_OR_REPOSITORY --model FOLDER_OF_THE_BACKBONE\n" in (probe / "README.md").read_text()

    scan = tmp_path / "scans" / "0.nii.gz"
    unnamed = voxelfm("predict", scan, "--probe", probe)
    assert unnamed.returncode == 2 and "say where that model is" in unnamed.stderr and "--model" in unnamed.stderr
    gone = voxelfm("predict", scan, "--probe", tmp_path / "missing", "--model", small_model)
    assert gone.returncode == 2 and "tiny" not in gone.stderr and "that `voxelfm probe` wrote" in gone.stderr
    other = voxelfm("predict", scan, "--probe", probe, "--model", "tiny")
    assert other.returncode == 2 and "weights" in other.stderr
    arguments = ["predict", scan, tmp_path / "gone.nii", "--probe", probe, "--model", small_model, "--json"]
    answered = voxelfm(*arguments, "--out", tmp_path / "answers")
    assert answered.returncode == 3 and "gone.nii" in answered.stderr
    answer = json.loads(answered.stdout)
    assert 0 <= answer["values"]["effusion"] <= 1
    with open(tmp_path / "answers" / "predictions.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [answer["scan"]] == ["scans/0.nii.gz"]
    alone = voxelfm("predict", scan, "--probe", probe, "--model", small_model)
    assert alone.returncode == 0 and "0.nii.gz\n" in alone.stdout and str(tmp_path) not in alone.stdout
    assert (tmp_path / "answers" / "scans" / "0.nii.gz" / "picture.png").is_file()
    assert "gone.nii" in (tmp_path / "answers" / "failures.csv").read_text()
    wrong = voxelfm("probe", store, tmp_path / "labels.csv", "--task", "nonsense", "--out", tmp_path / "x")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_reports_of_scans_of_one_name_do_not_overwrite_each_other(scan_folder, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copytree(scan_folder / "series", tmp_path / "other" / "series")
    same = (scan_folder / "series", tmp_path / "other" / "series")
    done = voxelfm("report", *same, "--model", tmp_path / "none", "--out", tmp_path / "written")
    assert done.returncode == 2 and "same name" in done.stderr and not (tmp_path / "written").exists()
    done = voxelfm("report", scan_folder / "a.nii.gz", "--model", tmp_path / "none")
    assert done.returncode == 2 and "tiny" not in done.stderr and "the folder of a report model" in done.stderr


def test_a_folder_in_use_is_refused_before_test_scans_are_scored(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from voxelfm_hf.cli import app

    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "kept.txt").write_text("mine")
    monkeypatch.setattr("voxelfm_hf.eval.probes.run.fit_and_evaluate", lambda *_, **__: pytest.fail("it was fitted"))
    words = ["probe", "store", "labels.csv", "--task", "classification", "--target", "t", "--out", tmp_path / "probe"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert "exists already: name a new or empty folder" in str(done.exception)
