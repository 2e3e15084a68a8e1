"""`voxelfm push`: what is released loads anywhere, what must not leave the house is refused, uploads survive breaks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from tests.library.loopback_hub import hub_environment, loopback_hub
from voxelfm_hf import VoxelFMProbe
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.release.checks import LOCAL_PATH, empty_sections, find_pickles, find_problems
from voxelfm_hf.release.folder import DATA, kind_of
from voxelfm_hf.release.upload import push
from voxelfm_hf.volumes.errors import ReleaseError, VoxelFMError

CARD = """---
license: apache-2.0
library_name: transformers
---
# A model

## How to use it

`voxelfm_hf.load("THIS_FOLDER_OR_REPOSITORY")`

## Intended use and limits

For tests.
"""


@pytest.fixture
def model(small_model, tmp_path) -> Path:
    """A folder that may be released."""
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    (folder / "README.md").write_text(CARD)
    return folder


def voxelfm(*words, environment):
    done = subprocess.run(
        [sys.executable, "-m", "voxelfm_hf.cli", *map(str, words)], capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout, done.stderr


def python(code, *words, environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_pushed_model_loads_by_name_and_revision_then_offline(model, tmp_path):
    code = (
        "import sys, torch\n"
        "sys.modules['voxelfm_hf'] = None\n"
        "from transformers import AutoModel\n"
        "options = {'revision': sys.argv[2]} if len(sys.argv) > 2 else {}\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, **options).eval()\n"
        "print(model(torch.ones(1, 1, 16, 16, 16)).pooler_output.double().sum().item())\n"
    )
    with loopback_hub() as hub:
        environment = hub_environment(hub, tmp_path / "home")
        status, out, err = voxelfm("push", model, "user/small", "--private", "--json", environment=environment)
        assert status == 0, err
        pushed = json.loads(out)
        repository = hub.repositories["user/small"]
        commit = list(repository.commits)[-1]
        assert repository.private and pushed["url"].endswith(commit)
        _, files = repository.files("main")
        assert {"model.safetensors", "config.json", "modeling_voxelfm.py", "LICENSE"} <= set(files)
        assert b'load("user/small")' in files["README.md"]
        by_name = python(code, "user/small", environment=environment)
        repository.commit({**files, "config.json": b"{}"})
        assert python(code, "user/small", commit, environment=environment) == by_name
        fresh = hub_environment(hub, tmp_path / "other_home")
        assert python(code, "user/small", commit, environment=fresh) == by_name
    offline = {**fresh, "HF_HUB_OFFLINE": "1"}
    assert python(code, "user/small", commit, environment=offline) == by_name


UPLOAD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from voxelfm_hf.release.upload import upload\n"
    "from voxelfm_hf.volumes.errors import ReleaseError, VoxelFMError\n"
    "try:\n"
    "    print('done', upload(Path(sys.argv[1]), 'user/small'))\n"
    "except ReleaseError as error:\n"
    "    print('refused', error)\n"
)


def test_broken_upload_leaves_the_repository_and_is_taken_up(model, tmp_path):
    (model / "picture.png").write_bytes(os.urandom(2000))
    with loopback_hub() as hub:
        environment = hub_environment(hub, tmp_path / "home")
        hub.uploads_allowed = 1
        assert "broke off" in python(UPLOAD, model, environment=environment)
        assert len(hub.repositories["user/small"].commits) == 1  # the empty repository
        arrived = set(hub.lfs)
        assert len(arrived) == 1
        hub.uploads_allowed, before = None, len(hub.asked)
        assert python(UPLOAD, model, environment=environment).startswith("done")
        sent = [request for request in hub.asked[before:] if request.startswith("PUT")]
        assert len(sent) == 1 and not any(oid in sent[0] for oid in arrived)


def test_hub_without_a_right_to_write_is_one_sentence(model, tmp_path):
    with loopback_hub() as hub:
        environment = {**hub_environment(hub, tmp_path / "home"), "HF_TOKEN": "hf_wrong"}
        said = python(UPLOAD, model, environment=environment)
        assert said.startswith("refused") and "hf auth login" in said and "\n" not in said
        said = python(UPLOAD, model, environment={**environment, "HF_HUB_OFFLINE": "1"})
        assert "unset it" in said


def test_probe_with_its_code(tmp_path):
    folder = tmp_path / "probe"
    config = VoxelFMProbeConfig(task="classification", feature_size=36, id2label={0: "nodule"}, head="mlp")
    VoxelFMProbe(config).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "predictions.csv").write_text("id,predicted_nodule\nA,0.5\n")
    pushed = push(folder, "user/probe", dry_run=True)
    assert pushed.kind == "probe" and pushed.url is None
    assert "modeling_voxelfm_probe.py" in pushed.files and "predictions.csv" in pushed.left_out


def test_the_model_inside_the_package_may_be_released():
    from voxelfm_hf.eval.learned.tiny_release import write_card
    from voxelfm_hf.hub import embedded_model

    pushed = push(embedded_model(), "user/tiny", dry_run=True)
    assert pushed.kind == "backbone" and {"LICENSE", "modeling_voxelfm.py", "results.png"} <= set(pushed.files)
    with pytest.raises(VoxelFMError, match="has no card.json"):
        write_card(embedded_model().parent)


def test_card_of_the_model_inside_the_package_is_as_rendered(tmp_path):
    from voxelfm_hf.eval.learned.tiny_release import write_card
    from voxelfm_hf.hub import embedded_model

    for name in ("card.json", "README.md"):
        shutil.copy(embedded_model() / name, tmp_path)
    card = write_card(tmp_path)
    assert card.read_text() == (embedded_model() / "README.md").read_text()
    # The scores of benchmarks stand in the header alone and outlive another rendering.
    assert {result.dataset_type for result in ModelCard.load(card).data.eval_results} == {"lidc", "openkbp", "phantoms"}


PROBE_CARD = """
## How to use

From a scan to an answer:

```
voxelfm predict SCAN --probe THIS_FOLDER_OR_REPOSITORY --model small
```

From features of the same backbone:

```python
probe = VoxelFMProbe.from_pretrained("THIS_FOLDER_OR_REPOSITORY")
```

## Intended use and limits

For tests.
"""


def test_probe_and_backbone_in_one_go_with_the_card_of_the_probe(small_model, tmp_path):
    import voxelfm_hf
    from voxelfm_hf.hub import weight_hash

    config = VoxelFMProbeConfig(
        task="classification",
        feature_size=36,
        id2label={0: "nodule"},
        problem_type="multi_label_classification",
        base_model_hash=weight_hash(small_model),
    )
    VoxelFMProbe(config).save_pretrained(tmp_path / "probe")
    (tmp_path / "probe" / "README.md").write_text(CARD.split("## How")[0] + PROBE_CARD)
    whole = voxelfm_hf.save_classifier(tmp_path / "probe", tmp_path / "whole", model=small_model)
    card = (whole / "README.md").read_text()
    assert "--model" not in card and "VoxelFMProbe" not in card and "pipeline(" in card
    with loopback_hub() as hub:
        environment = hub_environment(hub, tmp_path / "home")
        status, out, err = voxelfm("push", whole, "user/whole", "--json", environment=environment)
        assert status == 0 and json.loads(out)["kind"] == "classifier", err
        code = (
            "import sys; sys.modules['voxelfm_hf'] = None\n"
            "import torch\n"
            "from transformers import AutoModelForImageClassification as Auto\n"
            "model = Auto.from_pretrained('user/whole', trust_remote_code=True)\n"
            "print(model(torch.ones(1, 1, 16, 16, 16)).logits.item())\n"
        )
        logits = float(python(code, environment=environment))
    model = voxelfm_hf.load_classifier(whole)[0]
    assert logits == pytest.approx(model(torch.ones(1, 1, 16, 16, 16)).logits.item(), abs=1e-5)
    (whole / "README.md").unlink()
    with pytest.raises(ReleaseError, match="save_classifier"):
        push(whole, "user/whole", dry_run=True)


@pytest.fixture
def adapters(tmp_path) -> Path:
    """LoRA adapters of the model inside the package, as fine-tuning leaves them."""
    from voxelfm_hf import load
    from voxelfm_hf.training.finetune.files import save_backbone
    from voxelfm_hf.training.finetune.model import make_trainable
    from voxelfm_hf.training.finetune.settings import Finetuned, FinetuneSettings

    backbone, processor = load("tiny")
    backbone = make_trainable(backbone, "lora", FinetuneSettings())
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    width = backbone.config.hidden_size
    probe = VoxelFMProbe(VoxelFMProbeConfig(task="classification", feature_size=width, id2label={0: "nodule"}))
    tuned = Finetuned("lora", backbone, probe, 0.5, 1, 2, 3.0, 100.0, 10, [], ("one scan was left out",))
    return save_backbone(tmp_path / "tuned", tuned, processor, base="tiny")


def test_adapters_go_once_somebody_has_chosen_a_licence(adapters):
    with pytest.raises(ReleaseError, match="says license: unknown in its header, which is no license"):
        push(adapters, "user/adapters", dry_run=True)
    card = adapters / "README.md"
    assert "one scan was left out" in card.read_text() and empty_sections(card.read_text()) == []
    card.write_text(card.read_text().replace("license: unknown", "license: apache-2.0"))
    pushed = push(adapters, "user/adapters", dry_run=True)
    assert pushed.kind == "LoRA adapter" and {"adapter_model.safetensors", "adapter_config.json"} <= set(pushed.files)
    config = json.loads((adapters / "adapter_config.json").read_text())
    (adapters / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "small"}))
    with pytest.raises(ReleaseError, match="names small as base_model_name_or_path, a folder that only you have"):
        push(adapters, "user/adapters", dry_run=True)


def test_report_adapter_goes_with_a_language_model_that_others_find(tmp_path):
    from tests.library.small_page import write_report_model

    report = write_report_model(tmp_path)
    (report / "README.md").write_text(CARD)
    config = json.loads((report / "config.json").read_text())

    def name(language_model):
        (report / "config.json").write_text(json.dumps({**config, "base_text_model": language_model}))
        for path in report.glob("*/adapter_config.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": language_model}))

    with pytest.raises(ReleaseError, match="path of your machine"):
        push(report, "user/report", dry_run=True)
    name("language")
    with pytest.raises(ReleaseError, match="names language as base_text_model, a folder that only you have"):
        push(report, "user/report", dry_run=True)
    name("user/language")
    with loopback_hub({"user/language": tmp_path / "language"}) as hub:
        environment = hub_environment(hub, tmp_path / "home")
        status, out, err = voxelfm("push", report, "user/report", "--json", environment=environment)
        assert status == 0 and json.loads(out)["kind"] == "report generator", err
        _, files = hub.repositories["user/report"].files("main")
        assert {"language_model_adapter/adapter_model.safetensors", "tokenizer.json", "LICENSE"} <= set(files)
        code = (
            "from voxelfm_hf.report_writer import ReportWriter\n"
            "from voxelfm_hf.data.phantom.chest import make_phantom\n"
            "print(ReportWriter('user/report').write(make_phantom(1, shape=(40, 48, 48)).volume).text)\n"
        )
        assert python(code, environment=environment).isalpha()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "README.md").unlink(), "no README.md"),
        (lambda f: (f / "README.md").write_text(CARD.replace("license: apache-2.0\n", "")), "names no license"),
        (
            lambda f: (f / "README.md").write_text(CARD + "\n## Evaluation\n\n## More\n\ntext"),
            "empty section: Evaluation",
        ),
        (lambda f: (f / "README.md").write_text(CARD + "\nTODO\n"), "unfinished"),
        (lambda f: (f / "README.md").write_text("no header"), "README.md"),
        (lambda f: (f / "README.md").write_text(CARD.replace("apache-2.0", "cc-by-4.0")), "only the text of apache"),
        (lambda f: (f / "optimizer.bin").write_bytes(b"x"), "optimizer.bin may hold a pickle"),
        (lambda f: torch.save({}, f / "state.md"), "state.md"),
        (lambda f: (f / "notes.txt").write_text("from /home/someone/scans/x"), "path of your machine"),
        (lambda f: (f / "notes.txt").write_text("series 1.3.6.1.4.1.14519.5.2.1.6279.6001.1"), "DICOM identifier"),
        (lambda f: (f / "notes.json").write_text('{"PatientName": "x"}'), "identifies a patient"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    ],
)
def test_what_speaks_against_a_release_is_said(model, spoil, message):
    spoil(model)
    with pytest.raises(ReleaseError, match=message) as error:
        push(model, "user/small", dry_run=True)
    assert "\n" not in str(error.value)


def test_folder_that_computes_something_else_without_the_package_is_refused(model, monkeypatch):
    from voxelfm_hf.release import folder as release_folder

    add_code = release_folder._add_code

    def changed_code(out):
        add_code(out)
        code = out / "modeling_voxelfm.py"
        code.write_text(
            code.read_text().replace("class VoxelFMModel(", "raise RuntimeError('changed')\nclass VoxelFMModel(")
        )

    monkeypatch.setattr(release_folder, "_add_code", changed_code)
    with pytest.raises(ReleaseError, match="without this package: RuntimeError: changed"):
        push(model, "user/small", dry_run=True)


def test_names_and_folders_that_cannot_be_pushed(model, tmp_path):
    for folder, name, message in [
        (model, "small", "user/name"),
        (model, "a/b/c", "user/name"),
        (tmp_path / "none", "user/x", "not a folder"),
        (tmp_path, "user/x", "neither a model"),
    ]:
        with pytest.raises(ReleaseError, match=message):
            push(folder, name, dry_run=True)


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Prepared data of two synthetic chests, with a card."""
    from voxelfm_hf.data.phantom import make_phantom
    from voxelfm_hf.data.prepare import prepare
    from voxelfm_hf.data.write_scan import write_nifti

    for seed in (1, 2):
        phantom = make_phantom(seed, shape=(40, 48, 48))
        write_nifti(phantom.volume, tmp_path / "scans" / f"{seed}.nii.gz")
    prepare(tmp_path / "scans", tmp_path / "data")
    return tmp_path / "data"


def test_prepared_data_go_as_a_data_set_and_stream_back(prepared, tmp_path):
    from voxelfm_hf.data.describe.card import write_card

    assert kind_of(prepared) is DATA
    description = json.loads((prepared / "description.json").read_text())
    with pytest.raises(ReleaseError, match="says license: unknown in its header, which is no license"):
        push(prepared, "user/scans", dry_run=True)
    write_card(prepared, description, [], license="apache-2.0")
    with loopback_hub() as hub:
        environment = hub_environment(hub, tmp_path / "home")
        status, _, err = voxelfm("push", prepared, "user/scans", environment=environment)
        assert status == 0, err
        _, files = hub.repositories["datasets/user/scans"].files("main")
        assert not {"failures.csv", "duplicates.csv", "prepare.json"} & set(files)
        shape = python(
            "from datasets import load_dataset\n"
            "print(next(iter(load_dataset('user/scans', split='train', streaming=True)))['shape'])",
            environment=environment,
        )
    assert len(json.loads(shape)) == 3
    description["region"] = {"head+neck": 2}
    (prepared / "description.json").unlink()
    (prepared / "description.json").write_text(json.dumps(description))
    with pytest.raises(ReleaseError, match="face"):
        push(prepared, "user/scans", dry_run=True)
    assert push(prepared, "user/scans", dry_run=True, allow_head=True).kind == "prepared data"


def test_prepared_data_whose_ids_are_paths_or_uids_are_refused(prepared):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from voxelfm_hf.data.describe.card import write_card

    write_card(prepared, json.loads((prepared / "description.json").read_text()), [], license="apache-2.0")
    shard = next(prepared.rglob("*.parquet"))
    table = pq.read_table(shard)
    ids = pa.array(["/home/someone/" + str(i) for i in range(len(table))])
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", ids), shard)
    with pytest.raises(ReleaseError, match="ids of your own"):
        push(prepared, "user/scans", dry_run=True, allow_head=True)


def test_local_paths_are_told_from_addresses_and_names():
    for text in ("/home/a/b", 'x="/mnt/disk/x"', r"C:\\Users\\a", "(/data/ct/1.nii)"):
        assert LOCAL_PATH.search(text), text
    for text in ("https://host/home/a", "user/name", "and/or", "a/data/x", "12/var"):
        assert not LOCAL_PATH.search(text), text


def test_empty_sections():
    markdown = "# A\n\n## B\n\ntext\n\n```\n# comment\n```\n## C\n\n### D\n\nx\n\n## E\n\n## F\n"
    assert empty_sections(markdown) == ["E", "F"]


def test_scores_for_leaderboards_go_with_the_model_and_its_folder_stays_as_it_was(model):
    from huggingface_hub import parse_eval_result_entries

    from voxelfm_hf.card_results import eval_entry, write_eval_results

    row = {"target": "malignant", "metric": "auroc", "value": 0.87, "low": 0.81, "high": 0.93, "n": 104}
    entry = eval_entry(row, dataset_id="user/nodules", task_id="malignancy", date="2026-01-01")
    (written,) = write_eval_results(model, [entry])
    (model / ".cache").mkdir()
    (model / ".cache" / "notes.md").write_text("for me alone")
    before = {p: (p.read_bytes(), p.stat().st_ino) for p in model.rglob("*") if p.is_file()}
    pushed = push(model, "user/small", dry_run=True)
    assert {p: (p.read_bytes(), p.stat().st_ino) for p in model.rglob("*") if p.is_file()} == before
    assert os.listdir(model.parent) == ["model"]
    assert ".eval_results/user--nodules.yaml" in pushed.files and ".cache/notes.md" in pushed.left_out
    assert parse_eval_result_entries(yaml.safe_load(written.read_text())) == [entry]


def test_no_ending_of_a_scan_goes_to_the_hub(model):
    names = ["a.hdr", "a.IMG", "a.img.gz", "a.nhdr", "a.raw", "a.zraw", "a.dicom", "a.ima", "a.NII", "a.DCM", "a.mhd"]
    for name in [*names, "A.NPY", "a.npy"]:
        (model / name).write_bytes(b"x")
    found = [problem.split(" is a scan")[0] for problem in find_problems(model, kind_of(model), load=False)]
    assert set(names) <= set(found)
    assert [problem.split(" may hold")[0] for problem in find_pickles(model)] == ["A.NPY", "a.npy"]
