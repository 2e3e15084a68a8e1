"""Whole pre-training runs on small volumes: results, exact resume, signals, bad losses, full disks, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import voxelfm_hf  # noqa: F401  registers the model with the Auto classes
from tests.training.killed_run import KILLED_RUN
from tests.training.small_shards import write_shards
from voxelfm_hf.recipes import to_recipe
from voxelfm_hf.training.checkpoints import Checkpoints
from voxelfm_hf.training.pretrain import loop as pretrain
from voxelfm_hf.training.pretrain import run_parts
from voxelfm_hf.training.pretrain.recipe import PretrainRecipe
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps one state a process; every run of a test is its own."""
    yield
    forget_accelerate()


def forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, number=10, side=16)
    return folder


def settings(shards: Path, output: Path, **changes) -> dict:
    """A run of five steps of two micro-batches, with stochastic depth and rescaled positions to make luck matter."""
    values = {
        "data": str(shards),
        "output_dir": str(output),
        "seed": 3,
        "model": {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "patch_size": 4,
            "num_register_tokens": 1,
            "drop_path_rate": 0.3,
            "pos_embed_rescale": 2.0,
        },
        "crops": {"global_size": [12, 16], "local_size": [8, 8], "num_locals": 2},
        "head": {"hidden_size": 16, "bottleneck_size": 8, "num_prototypes": 32},
        "optimizer": {"warmup_steps": 2, "last_layer_frozen_steps": 1},
        "teacher": {"temperature_warmup_steps": 4},
        "run": {
            "total_steps": 5,
            "total_batch": 4,
            "batch_size": 2,
            "mixed_precision": "no",
            "num_workers": 0,
            "log_every": 1,
            "checkpoint_every": 2,
            "keep_last": 2,
            "keep_every": 0,
            "trackers": [],
        },
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            values[section][field] = value
        else:
            values[section] = value
    return values


def run(shards: Path, output: Path, **changes) -> Path:
    return pretrain.pretrain(to_recipe(settings(shards, output, **changes), PretrainRecipe))


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: student, optimiser, teacher with its centres, random states."""
    found = dict(load_file(checkpoint / "model.safetensors"))
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl"):
        found |= flattened(torch.load(checkpoint / name, weights_only=True), name)
    return found


def flattened(values, name: str) -> dict:
    if isinstance(values, dict):
        return {key: item for part, value in values.items() for key, item in flattened(value, f"{name}.{part}").items()}
    if isinstance(values, list | tuple):
        return flattened(dict(enumerate(values)), name)
    return {name: values}


def assert_equal_runs(first: Path, second: Path) -> None:
    """Two finished runs are the same bit for bit: weights, optimiser, centres, log, data position, exported teacher."""
    assert (first / "log.jsonl").read_text() == (second / "log.jsonl").read_text()
    checkpoints = [sorted((folder / "checkpoints").iterdir()) for folder in (first, second)]
    assert [path.name for path in checkpoints[0]] == [path.name for path in checkpoints[1]]
    newest = [paths[-1] for paths in checkpoints]
    states = [state_of(path) for path in newest]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 100
    for name, value in states[0].items():
        equal = torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
        assert equal, name
    positions = [(path / "data_position_0.json").read_text() for path in newest]
    assert positions[0] == positions[1]
    teachers = [(folder / "teacher" / "model.safetensors").read_bytes() for folder in (first, second)]
    assert teachers[0] == teachers[1]


@pytest.fixture(scope="module")
def whole_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = run(shards, tmp_path_factory.mktemp("whole") / "run")
    forget_accelerate()
    return folder


def test_a_run_leaves_a_teacher_that_loads_and_everything_to_judge_it(whole_run: Path):
    model = AutoModel.from_pretrained(whole_run / "teacher")
    processor = AutoImageProcessor.from_pretrained(whole_run / "teacher")
    assert type(model).__name__ == "VoxelFMModel" and model.config.drop_path_rate == 0.0
    assert processor.patch_size == 4 and processor.image_mean == -573.8
    assert model(torch.zeros(1, 1, 8, 8, 8)).pooler_output.shape == (1, 12)
    entries = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    for name in ("total", "ibot", "koleo", "grad_norm", "teacher_entropy", "feature_rank", "dino_centre_norm"):
        assert all(entry[name] is not None for entry in entries), name
    assert [entry["last_layer_learning_rate"] for entry in entries][:2] == [0.0, pytest.approx(5e-4)]
    assert json.loads((whole_run / "environment.json").read_text())["processes"] == 1
    facts = json.loads((whole_run / "data.json").read_text())
    assert facts["sources"][0]["scans"] == 10 and len(facts["fingerprint"]) == 16
    card = (whole_run / "README.md").read_text()
    assert "Steps: 5 of 5, 4 volumes each (20 in total)" in card and facts["fingerprint"] in card
    assert "0 volumes skipped)" in card and not (whole_run / "skipped.jsonl").exists()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=whole_run, check=True)
    assert (whole_run / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (whole_run / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_teacher_and_student_differ_and_learning_moved_them(whole_run: Path):
    state = state_of(whole_run / "checkpoints" / "step-00000005")
    key = "backbone.layers.0.mlp.up_proj.weight"
    assert not torch.equal(state[key], state[f"custom_checkpoint_0.pkl.{key}"])


def test_a_killed_run_goes_on_as_if_nothing_had_happened(shards: Path, whole_run: Path, tmp_path: Path):
    """With a loader worker, which reads ahead of the steps; the uninterrupted run has none."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings(shards, tmp_path / "run", run__num_workers=1)))  # JSON is YAML
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(recipe)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums depend on how they are split
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
    assert_equal_runs(whole_run, run(shards, tmp_path / "run", run__num_workers=1))


def test_sigterm_saves_and_a_new_start_goes_on(shards: Path, whole_run: Path, tmp_path: Path, monkeypatch):
    step = pretrain.optimiser_step

    def interrupted(*words, **named):
        if named["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "optimiser_step", interrupted)
        folder = run(shards, tmp_path / "run")
    newest = max(path.name for path in (folder / "checkpoints").iterdir())
    assert newest in ("step-00000003", "step-00000004")  # the signal is seen at this step's end or the next one's
    assert (folder / "teacher" / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    forget_accelerate()
    run(shards, tmp_path / "run")
    assert_equal_logs_and_weights(whole_run, folder)


def assert_equal_logs_and_weights(first: Path, second: Path) -> None:
    assert (first / "log.jsonl").read_text() == (second / "log.jsonl").read_text()
    weights = [(folder / "teacher" / "model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]


def poisoned_student(monkeypatch, bad_calls: set[int]) -> None:
    """Make the loss of some micro-batches NaN."""
    forward, calls = run_parts.Student.forward, iter(range(10**6))

    def poisoned(self, *words):
        losses = forward(self, *words)
        return {**losses, "total": losses["total"] * float("nan")} if next(calls) in bad_calls else losses

    monkeypatch.setattr(run_parts.Student, "forward", poisoned)


def test_a_step_with_a_nan_is_skipped_counted_and_changes_nothing(shards: Path, tmp_path: Path, monkeypatch):
    poisoned_student(monkeypatch, {5})  # the second micro-batch of the third step
    folder = run(shards, tmp_path / "run", run__checkpoint_every=1, run__keep_last=9)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["bad_steps"] for entry in entries] == [0, 0, 1, 1, 1]
    assert entries[2]["total"] is None and entries[3]["total"] is not None
    before, after = (state_of(folder / "checkpoints" / f"step-0000000{step}") for step in (2, 3))
    changed = [
        name
        for name, value in before.items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, after[name])
    ]
    assert changed == []
    later = state_of(folder / "checkpoints" / "step-00000004")
    assert not torch.equal(later["backbone.norm.weight"], after["backbone.norm.weight"])


def test_too_many_bad_steps_stop_the_run_with_a_usable_checkpoint(shards: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        poisoned_student(patch, set(range(4, 100)))
        with pytest.raises(VoxelFMError, match="not finite for 2 steps in a row"):
            run(shards, tmp_path / "run", run__max_bad_steps=2)
    forget_accelerate()
    folder = run(shards, tmp_path / "run", run__max_bad_steps=2)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["total"] is None for entry in entries] == [False, False, True, True, False]


def test_a_full_disk_leaves_the_previous_checkpoint(shards: Path, tmp_path: Path, monkeypatch):
    save = Checkpoints._write

    def full_disk(self, part: Path, step: int, position: dict):
        if step == 4:
            (part / "half").write_bytes(b"x")
            raise OSError(28, "No space left on device")
        save(self, part, step, position)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_write", full_disk)
        with pytest.raises(VoxelFMError, match="step 4 .*No space left on device.*step-00000002 is still usable"):
            run(shards, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_what_a_killed_save_left_is_ignored_and_cleared(shards: Path, whole_run: Path, tmp_path: Path):
    part = tmp_path / "run" / "checkpoints" / ".step-00000002.part"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")
    assert_equal_logs_and_weights(whole_run, run(shards, tmp_path / "run"))
    assert not part.exists()


def test_another_number_of_processes_is_refused(shards: Path, tmp_path: Path):
    folder = run(shards, tmp_path / "run", run__total_steps=2)
    facts = folder / "checkpoints" / "step-00000002" / "run.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"num_processes": 2}))
    forget_accelerate()
    with pytest.raises(RecipeError, match="trained with 2 processes and cannot go on with 1"):
        run(shards, tmp_path / "run", run__total_steps=2)


def test_another_recipe_in_the_same_folder_is_refused_but_bookkeeping_may_change(shards: Path, tmp_path: Path):
    run(shards, tmp_path / "run", run__total_steps=2)
    forget_accelerate()
    with pytest.raises(RecipeError, match=r"with seed 3, not 4 \(1 field"):
        run(shards, tmp_path / "run", run__total_steps=2, seed=4)
    forget_accelerate()
    run(shards, tmp_path / "run", run__total_steps=2, run__log_every=2, probe={"every": 7})


def test_bf16_and_sinkhorn_and_recomputed_blocks_run(shards: Path, tmp_path: Path):
    folder = run(
        shards,
        tmp_path / "run",
        run__mixed_precision="bf16",
        run__total_steps=2,
        run__checkpoint_activations=True,
        loss={"targets": "sinkhorn"},
    )
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(entry["total"] is not None for entry in entries)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__total_batch": 3}, "run.total_batch 3 is not a multiple"),
        ({"crops": {"global_size": 10, "local_size": 8}}, "crop edge 10 is not a multiple of model.patch_size 4"),
        ({"crops": {"global_size": [8, 12], "local_size": 8}}, "must list equally many edges"),
        ({"model__hidden_size": 13}, "hidden_size 13 must be a multiple"),
        ({"run__batch_size": 0}, "run.batch_size must be above 0"),
        ({"loss": {"targets": "other"}}, "loss.targets"),
        ({"data": "/nowhere/at/all"}, "no such file or folder"),
    ],
)
def test_recipes_that_cannot_run_are_refused_in_one_sentence(shards: Path, tmp_path: Path, changes, message):
    with pytest.raises(VoxelFMError, match=message) as caught:
        run(shards, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)


def test_the_command_says_what_is_wrong_and_exits_with_2(capsys):
    assert pretrain.main(["smoke", "--data", "x", "--output_dir", "y", "--run.total_step", "3"]) == 2
    assert "there is no field run.total_step; did you mean total_steps" in capsys.readouterr().err
    assert pretrain.main(["smoke", "--output_dir", "y"]) == 2
    assert "data is missing" in capsys.readouterr().err


def test_processes_that_do_not_see_each_other_are_told_so(shards: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes were launched but do not see each other"):
        run(shards, tmp_path / "run")


def test_dry_run_prints_an_estimate_and_leaves_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["smoke", "--dry-run", "--run.total_batch", "32"]) == 0
    printed = capsys.readouterr().out
    assert "a step is 32 volumes: 1 process(es) x 4 micro-batch(es) x 8" in printed
    assert "memory a process about" in printed and "time at least" in printed
    assert list(tmp_path.iterdir()) == []
