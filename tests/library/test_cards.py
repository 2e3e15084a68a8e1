"""Cards: complete or refused, metadata that the Hub's own classes read back, a probe pushed and used elsewhere."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard, parse_eval_result_entries

from tests.library.loopback_hub import hub_environment, loopback_hub
from voxelfm_hf import cards
from voxelfm_hf.card_results import add_model_index, eval_entry, model_index, write_eval_results
from voxelfm_hf.eval.benchmark.backbone_scores import score_backbone
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.probes.card import ProbeFacts, write_probe_card
from voxelfm_hf.eval.probes.run import fit_and_evaluate, save_probe
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.release.checks import empty_sections
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore, StoreWriter
from voxelfm_hf.volumes.errors import CardError

ROW = {"family": "classification", "task": "nodules", "target": "malignant", "metric": "auroc", "value": 0.87}
ROW |= {"low": 0.81, "high": 0.93, "n": 104, "patients": 60}
TABLE = cards.score_table([ROW])
BACKBONE = {
    "name": "Small", "summary": "An encoder.", "limits": "Chests only.", "skipped": "No volume was skipped.",
    "steps": 10,
    "sources": [{"name": "a", "scans": 3, "weight": 1.0, "what": "CT.", "licence": "MIT.", "citation": "A et al."}],
    "batch": 4, "hours": 0.5, "device": "cpu", "machine": "2 cores", "precision": "bf16", "parameters": "1,000",
    "hidden_size": 36, "depth": 2, "heads": 1, "patch_size": 8, "commands": ("train",), "evaluation_command": "judge",
    "curve_command": "judge --curve", "results": TABLE, "curve": "| step | score |", "date": "2026-01-01",
    "licence_note": "Apache-2.0.",
}  # fmt: skip
PROBE = {
    "task": "classification", "name": "Nodules", "summary": "A probe.", "features": "cls=cls",
    "answer": "probabilities",
    "base": "user/small", "base_hash": "f" * 64, "limits": "Chests only.", "data": "LIDC.", "count_names": ["positive"],
    "counts": {"train": [10, 5, "4 of 10"]}, "split_rule": "By patient.", "fit": "A linear head.",
    "settings": {"epochs": "4"}, "cost": "2 s.", "evaluation": "Scored once by `voxelfm probe`.", "scores": TABLE,
    "pictures": {"roc.png": "ROC."}, "calibration": "| a |", "subgroups": "| b |", "undefined": ["F1: no positive row"],
    "data_citation": "A et al.", "notes": ["one scan was left out"], "predict_command": "voxelfm predict SCAN",
}  # fmt: skip
RETRIEVAL = {name: PROBE[name] for name in PROBE if name in (
    "name", "summary", "base", "base_hash", "limits", "data", "count_names", "counts", "split_rule", "evaluation",
    "scores", "subgroups", "undefined", "data_citation", "notes",
)} | {"negatives": 99, "alike": "spacing (1)"}  # fmt: skip
REPORT = {
    "name": "Writer", "summary": "Writes findings.", "command_use": "voxelfm report SCAN", "code": "load(...)",
    "limits": "Invents.", "data": "Reports.", "training": "Two stages.", "settings": {"steps": "4"}, "cost": "2 h.",
    "evaluation": "Scored by `voxelfm benchmark reports`.", "scores": TABLE, "parts_licences": "Language model: MIT.",
    "examples": [{"title": "1", "reference": "none", "written": "none"}],
}  # fmt: skip
BENCHMARK = {
    "title": "Nodules", "summary": "Six encoders.", "command": "voxelfm benchmark lidc", "data": "LIDC.",
    "encoders": [
        {"encoder": "tiny", "preprocessing": "cubes", "rows": 9, "seconds_embedding": 1, "seconds_fitting": 2}
    ],
    "cost": "3 s.", "reading": "Means over seeds.", "limits": "One data set.", "data_licence": "CC BY 3.0",
    "sections": [{"title": "malignant", "table": TABLE, "pictures": {"roc.png": "ROC."}}], "data_citation": "A et al.",
    "pictures": {}, "comparisons": "", "subgroups": "", "failures": [], "notes": [],
}  # fmt: skip
TUNED = {
    "mode": "lora", "task": "classification", "name": "Adapters", "summary": "LoRA.", "base": "user/small",
    "base_hash": "f" * 12, "settings": {"epochs": 3}, "cost": "2 s.", "notes": ["left out: one"],
}  # fmt: skip
KINDS = {
    "backbone": (cards.backbone_card, BACKBONE, ModelCard),
    "probe": (cards.probe_card, PROBE, ModelCard),
    "retrieval": (cards.retrieval_card, RETRIEVAL, ModelCard),
    "report_adapter": (cards.report_adapter_card, REPORT, ModelCard),
    "benchmark": (cards.benchmark_card, BENCHMARK, DatasetCard),
}


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_renders_with_a_header_that_the_hub_reads(kind):
    render, values, card_class = KINDS[kind]
    card = render(**values)
    assert card_class(card).data.to_dict()["tags"][:2] == ["medical", "computed-tomography"]
    assert header(card) == card_class(card).data.to_dict()
    assert empty_sections(card) == [] and "{{" not in card and "None" not in card
    for words in ("licence", "how to" if kind != "backbone" else "## use", "train" if kind != "benchmark" else "data"):
        assert words in card.lower()
    assert "0.870 | 0.810 to 0.930 | 104 | 60" in card


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_named(kind):
    render, values, _ = KINDS[kind]
    for name in values:
        if name == "task":
            continue
        left = {key: value for key, value in values.items() if key != name}
        if name in ("license", "examples", "notes") and kind == "report_adapter":
            assert render(**left)
            continue
        with pytest.raises(CardError, match=rf"\b{name}\b"):
            render(**left)
    with pytest.raises(CardError, match="not finite in limits"):
        render(**{**values, "limits": [float("nan")]})
    with pytest.raises(CardError, match="lacks limits"):
        render(**{**values, "limits": ""})


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_tuned_backbone_says_what_it_was_made_from(mode):
    card = cards.tuned_backbone_card(**{**TUNED, "mode": mode}, base_model="user/small", license="mit")
    data = ModelCard(card).data
    assert (data.license, data.base_model) == ("mit", "user/small") and empty_sections(card) == []
    assert ("PeftModel" in card) == (data.library_name == "peft") == (mode == "lora")
    assert "Licence of these weights: mit." in card and "f" * 12 in card and "- left out: one" in card
    with pytest.raises(CardError, match="lacks base_hash"):
        cards.tuned_backbone_card(**{**TUNED, "base_hash": ""})


def test_gaps_inside_values_and_empty_sections_are_refused():
    with pytest.raises(CardError, match="citation"):
        cards.backbone_card(
            **{**BACKBONE, "sources": [{"name": "a", "scans": 1, "weight": 1.0, "what": "", "licence": ""}]}
        )
    with pytest.raises(CardError, match="nothing to say under Data"):
        cards.probe_card(**{**PROBE, "data": "\n## Data\n\n## Other\n\ntext"})
    with pytest.raises(CardError, match="has no n"):
        cards.score_table([{**ROW, "n": None}])


def test_names_are_text_and_never_markup_or_templates():
    name = "a|b {{ 7 * 7 }} {% for x in y %}\n---\nlicense: mit"
    table = cards.score_table([{**ROW, "target": name}])
    card = cards.probe_card(**{**PROBE, "name": name.split("\n")[0], "scores": table}, eval_results=[])
    assert "{{ 7 * 7 }}" in card and "49" not in card and len(table.splitlines()) == 3
    results = model_index([{**ROW, "target": name}], dataset_name=name)
    assert ModelCard(cards.probe_card(**PROBE, eval_results=results)).data.license == "unknown"


@pytest.mark.parametrize("kind", KINDS)
def test_code_of_templates_and_markup_in_values_is_text(kind):
    render, values, _ = KINDS[kind]
    hostile = "x {{ 7*7 }} {% for a in b %} {{ ''.__class__.__mro__ }} {# c #} <script>alert(1)</script>"
    for name in (name for name, value in values.items() if isinstance(value, str) and value and name != "task"):
        card = render(**{**values, name: hostile})
        assert hostile in card, name
        assert "<class" not in card
    name = "title" if kind == "benchmark" else "name"
    with pytest.raises(CardError, match="several lines"):
        render(**{**values, name: "Small\n---\nlicense: mit\n---\n## Licence\n\nMIT"})


def test_results_come_back_from_the_header_of_a_card():
    rows = [
        ROW,
        {**ROW, "metric": "f1", "value": None},
        {**ROW, "metric": "ece", "value": "0.05", "low": "", "n": "104"},
    ]
    results = model_index(rows, dataset_name="LIDC", dataset_id="user/lidc")
    assert len(results) == 2
    card = cards.backbone_card(**BACKBONE, eval_results=results)
    again = ModelCard(card).data
    assert again.eval_results == results and again.model_name == "Small"
    assert again.eval_results[0].metric_type == "roc_auc"
    assert again.eval_results[0].metric_name == "auroc of malignant (95 % interval 0.810 to 0.930, n 104)"
    plain = cards.backbone_card(**BACKBONE)
    added = add_model_index(plain, results, name="Small")
    assert ModelCard(added).data.eval_results == results and ModelCard(added).text == ModelCard(plain).text


def test_leaderboard_entries_are_files_that_the_hub_reads(tmp_path):
    entries = [eval_entry(ROW, dataset_id="user/lidc", task_id=task, date="2026-01-01") for task in ("a", "b")]
    (path,) = write_eval_results(tmp_path, entries)
    assert path.relative_to(tmp_path).as_posix() == ".eval_results/user--lidc.yaml"
    assert parse_eval_result_entries(yaml.safe_load(path.read_text())) == entries
    with pytest.raises(CardError, match="two scores for the task a"):
        write_eval_results(tmp_path, [entries[0], entries[0]])
    with pytest.raises(CardError, match="named user/name"):
        eval_entry(ROW, dataset_id="lidc", task_id="a")
    with pytest.raises(CardError, match="undefined"):
        eval_entry({**ROW, "value": ""}, dataset_id="user/lidc", task_id="a")


def test_benchmark_scores_go_into_the_card_of_a_backbone(tmp_path):
    out, model = tmp_path / "out", tmp_path / "model"
    out.mkdir()
    model.mkdir()
    (out / "results.json").write_text(json.dumps({"recipe": {"data": "lidc"}}))
    names = ("encoder", "task", "target", "metric", "value", "low", "high", "n", "fraction", "family", "main")
    lines = [
        ("tiny", "nodules", "malignant", "auroc", 0.87, 0.81, 0.93, 104, 1.0, "classification", True),
        ("tiny", "nodules", "malignant", "auroc", 0.7, 0.6, 0.8, 104, 0.1, "classification", True),
        ("tiny", "nodules", "malignant", "f1", 0.5, 0.4, 0.6, 104, 1.0, "classification", False),
        ("tiny", "retrieval", "malignant", "recall_at_5", "", "", "", 0, 1.0, "retrieval", True),
        ("other", "nodules", "malignant", "auroc", 0.6, 0.5, 0.7, 104, 1.0, "classification", True),
    ]
    (out / "results.csv").write_text("\n".join(",".join(map(str, line)) for line in (names, *lines)))
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small encoder\n\ntext\n")
    ids = {"nodules/malignant": "malignancy"}
    card, entries = score_backbone([out], "tiny", model, dataset_id="user/nodules", task_ids=ids)
    data = ModelCard.load(card).data
    (result,) = data.eval_results
    assert (result.metric_value, result.metric_type, result.dataset_type) == (0.87, "roc_auc", "user/nodules")
    assert data.model_name == "Small encoder" and data.license == "apache-2.0" and "text" in card.read_text()
    (entry,) = parse_eval_result_entries(yaml.safe_load(entries.read_text()))
    assert (entry.task_id, entry.value) == ("malignancy", 0.87) and "n 104" in entry.notes
    for words, change in [
        ("no encoder best", {"encoder": "best"}),
        ("no README.md", {"model": out}),
        ("has no nodules/x", {"task_ids": {"nodules/x": "y"}}),
        ("give --dataset-id", {"task_ids": ids, "dataset_id": None}),
        ("voxelfm benchmark", {"outs": [model]}),
        ("one benchmark folder", {"outs": [out, out]}),
    ]:
        with pytest.raises(CardError, match=words):
            score_backbone(**{"outs": [out], "encoder": "tiny", "model": model, "dataset_id": "user/nodules", **change})
    # The scores of several benchmarks stand side by side, in place of those before.
    organs = tmp_path / "organs"
    organs.mkdir()
    (organs / "results.json").write_text(json.dumps({"recipe": {"data": "openkbp"}}))
    line = ("tiny", "segmentation", "macro", "dice", 0.5, 0.4, 0.6, 7, 1.0, "segmentation", True)
    same_family = ("tiny", "larynx", "contoured", "auroc", 0.6, 0.5, 0.7, 7, 1.0, "classification", True)
    (organs / "results.csv").write_text("\n".join(",".join(map(str, part)) for part in (names, line, same_family)))
    score_backbone([out, organs], "tiny", model)
    found = {result.metric_value: result.dataset_name for result in ModelCard.load(card).data.eval_results}
    assert sorted(found) == [0.5, 0.6, 0.87]
    assert "LIDC" in found[0.87] and "OpenKBP" in found[0.5] and found[0.6] == found[0.5]


def vectors(folder, count=60):
    """A store of random vectors and labels of 30 patients; the first numbers of a vector are the truth."""
    rng = np.random.default_rng(0)
    cls = rng.normal(size=(count, 6)).astype(np.float32)
    facts = {"grid": [1, 1, 1], "spacing_mm": [1.0] * 3, "effective_spacing_mm": [1.0] * 3, "notes": []}
    facts |= {"field_of_view_mm": [8.0] * 3, "patch_affine": np.eye(4).ravel().tolist()}
    ids = [f"{i:02}" for i in range(count)]
    rows = [{"id": i, "source": i, "cls": vector, **facts} for i, vector in zip(ids, cls, strict=True)]
    StoreWriter(folder, {"model": "user/small", "weight_hash": "f" * 64, "processor": {}, "patches": False}).add(rows)
    columns = {
        "patient_id": [i // 2 for i in range(count)],
        "split": [("train", "train", "train", "val", "test")[i // 2 % 5] for i in range(count)],
        "sick|ill": [int(v > 0) for v in cls[:, 0]],
        "rare": [int(i == 0 or i // 2 % 5 == 3 and i % 2) for i in range(count)],
        "grade": [("low", "mid", "high")[int(np.digitize(v, [-0.4, 0.4]))] for v in cls[:, 1]],
        "size": (10 + cls[:, 2]).tolist(),
        "time": np.exp(-cls[:, 3]).round(2).tolist(),
        "event": [int(v > -1) for v in cls[:, 4]],
        "sex": ["FM"[i // 2 % 2] for i in range(count)],
    }
    return FeatureStore(folder), LabelTable("labels.csv", ids, columns)


@pytest.mark.parametrize(
    ("task", "read", "pictures", "words"),
    [
        ("classification", {"targets": ["sick|ill", "rare"]}, ["roc.png", "reliability.png"], ["temperature"]),
        ("classification", {"targets": ["grade"], "exclusive": True}, ["roc.png"], ["One temperature"]),
        ("regression", {"targets": ["size"], "units": ["mm"]}, ["agreement.png"], ["90 % prediction interval", "mm |"]),
        ("survival", {"unit": "years"}, ["survival.png"], ["C-index", "event: events"]),
    ],
)  # fmt: skip
def test_a_saved_probe_says_what_it_is(tmp_path, task, read, pictures, words):
    store, labels = vectors(tmp_path / "store")
    fitted = fit_and_evaluate(store, labels, task=task, read=read, evaluate={"replicates": 50})
    probe, reports, data, predictions = fitted
    facts = ProbeFacts(license="mit", dataset="LIDC", dataset_id="user/lidc", command="voxelfm probe STORE labels.csv")
    save_probe(tmp_path / "probe", probe, reports, data, predictions, facts=facts)
    card = (tmp_path / "probe" / "README.md").read_text()
    for picture in pictures:
        assert (tmp_path / "probe" / picture).is_file() and f"]({picture})" in card
    assert "user/small" in card and "f" * 64 in card and "`voxelfm probe STORE labels.csv`" in card
    assert all(word in card for word in words) and "| sex | F |" in card
    assert f"| test | {len(data.rows('test'))} | 6 |" in card
    assert "| epochs |" in card and ("| balance |" in card) == (task == "classification")
    assert "| window |" not in card and "| dice |" not in card  # of maps only
    read_back = ModelCard(card).data
    assert read_back.license == "mit" and read_back.base_model == "user/small" and read_back.datasets == ["user/lidc"]
    first, report = next(iter(reports.items()))
    headline = next(r for r in read_back.eval_results if f"of {first}" in r.metric_name)
    values = [estimate["value"] for estimate in report["estimates"].values()]
    assert any(value is not None and abs(value - headline.metric_value) < 1e-5 for value in values)
    quiet = write_probe_card(probe, reports, data)
    assert ModelCard(quiet).data.license == "unknown" and "Nobody has chosen a licence" in quiet


def test_the_card_of_a_probe_of_regions_says_how_large_they_were_and_how_to_name_them(tmp_path):
    store, labels = vectors(tmp_path / "store")
    known = fit_and_evaluate(store, labels, task="regression", read={"targets": ["size"]}, evaluate={"replicates": 20})
    assert "cubes" not in write_probe_card(known[0], *known[1:3])
    known[0].config.processor = {"region_size": 8}
    known[0].config.fit["field_of_view_mm"] = [[24.0] * 3, [24.0] * 3]
    card = write_probe_card(known[0], *known[1:3])
    assert "| cubes of the training rows | 24 x 24 x 24 mm (z, y, x) |" in card
    assert "--probe THIS_FOLDER_OR_REPOSITORY --regions CSV\n" in card
    known[0].config.fit["field_of_view_mm"][1] = [40.5] * 3
    assert "| 24 x 24 x 24 to 40.5 x 40.5 x 40.5 mm (z, y, x) |" in write_probe_card(known[0], *known[1:3])


def test_a_card_does_not_speak_of_patients_that_nobody_told_apart(tmp_path):
    store, labels = vectors(tmp_path / "store")
    known = fit_and_evaluate(store, labels, task="regression", read={"targets": ["size"]}, evaluate={"replicates": 20})
    card = write_probe_card(known[0], *known[1:3])
    assert "| n | patients |" in card and known[1]["size"]["estimates"]["r2"]["patients"] == 6
    assert (
        "All rows of a patient are in one split" in card and "of 18 patients" in card and "resamples patients" in card
    )
    del labels.columns["patient_id"]
    blind = fit_and_evaluate(store, labels, task="regression", read={"targets": ["size"]}, evaluate={"replicates": 20})
    card = write_probe_card(blind[0], *blind[1:3])
    assert "| n | patients |" not in card and "| 95 % interval | n |" in card
    estimates = [*blind[0].config.metrics.values(), *blind[1]["size"]["subgroups"]]
    assert {estimate["patients"] for estimate in estimates} == {None}
    assert "All rows of a patient" not in card and "resamples patients" not in card
    assert "may be in different splits" in card and "from 36 scans or regions of an unknown number of patients" in card
    assert f"| test | {len(blind[2].rows('test'))} | unknown |" in card and "no column of patients" in card


def test_a_probe_goes_to_the_hub_and_answers_for_a_fresh_scan_elsewhere(small_model, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for i in range(8):
        np.save(tmp_path / "scans" / f"{i}.npy", rng.integers(-900, 900, (20, 24, 28)).astype(np.int16))
    options = EmbedOptions(spacing=(1.5, 1.0, 1.0), dtype="float32")
    embed_scans([Task(s) for s in list_scans([tmp_path / "scans"])], small_model, tmp_path / "store", options)
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    labels = LabelTable(
        "l", [f"{i}.npy" for i in range(8)], {"sick": [0, 1] * 4, "split": splits, "patient": list(range(8))}
    )
    fitted = fit_and_evaluate(
        FeatureStore(tmp_path / "store"),
        labels,
        task="classification",
        read={"targets": ["sick"]},
        evaluate={"replicates": 20},
    )
    fitted[0].config.base_model_name_or_path = "user/small"
    save_probe(tmp_path / "probe", *fitted, facts=ProbeFacts(license="apache-2.0"))
    scan = tmp_path / "fresh.npy"
    np.save(scan, rng.integers(-900, 900, (22, 20, 30)).astype(np.int16))

    def voxelfm(*words, environment):
        command = [sys.executable, "-m", "voxelfm_hf.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ask = ("predict", scan, "--probe", "user/sick", "--spacing", "1.5,1,1", "--json")
    with loopback_hub({"user/small": small_model}) as hub:
        environment = hub_environment(hub, tmp_path / "home")
        voxelfm("push", tmp_path / "probe", "user/sick", environment=environment)
        _, pushed = hub.repositories["user/sick"].files("main")
        answer = json.loads(voxelfm(*ask, environment=environment))
    card = pushed["README.md"].decode()
    assert "--probe user/sick" in card and "roc.png" in pushed and "predictions.csv" not in pushed
    assert re.search(r"base_model: user/small", card)
    offline = json.loads(voxelfm(*ask, environment={**environment, "HF_HUB_OFFLINE": "1"}))
    assert offline == answer and 0 < answer["values"]["sick"] < 1

    from voxelfm_hf import load, read_volume

    model, processor = load(small_model)
    with torch.no_grad():
        cls = model(**processor(read_volume(scan, spacing=(1.5, 1.0, 1.0)))).pooler_output
        expected = VoxelFMProbe.from_pretrained(tmp_path / "probe").predict(cls=cls).predictions.item()
    assert answer["values"]["sick"] == pytest.approx(expected, abs=1e-3)
