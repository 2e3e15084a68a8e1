import copy
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from tests.training.small_tuning import Made, finetuned, make_tuning
from voxelfm_hf.hub import load, weight_hash
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.probe_losses_voxelfm import cox_loss
from voxelfm_hf.training.finetune.features import backbone_features
from voxelfm_hf.training.finetune.files import merged, save_backbone
from voxelfm_hf.training.finetune.loop import _Run
from voxelfm_hf.training.finetune.model import encode, make_trainable, trained_state
from voxelfm_hf.training.finetune.settings import EncoderLoraSettings, FinetuneSettings, blocks_of_mode
from voxelfm_hf.training.finetune.step import TuningLoss
from voxelfm_hf.training.launch import open_accelerator
from voxelfm_hf.training.probe import fit_probes, make_probe, probe_logits
from voxelfm_hf.training.probe.data import ProbeJob
from voxelfm_hf.volumes.errors import RecipeError, VoxelFMError

QUICK = FinetuneSettings(epochs=2, batch_size=6, micro_batch=4, patience=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return make_tuning(tmp_path_factory.mktemp("tuning"))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_inputs_are_the_processors_to_a_sixteenth_of_a_unit(made):
    model, processor = load(made.model)
    from voxelfm_hf.volumes import read_volume

    voxels = processor(read_volume(made.scans[0]), return_geometry=True)["pixel_values"][0]
    kept = made.inputs.read(made.ids[0])
    assert kept.shape == voxels.shape and kept.dtype == torch.float32
    assert float((kept - voxels).abs().max()) <= float(voxels.max() - voxels.min()) / 65534 * 0.51


def test_frozen_is_the_probe(made):
    backbone, _ = load(made.model)
    before = weights(backbone)
    result = finetuned(made, "frozen", backbone=backbone)
    assert result.probe is made.probe and result.trainable_parameters == 0
    assert same(before, weights(result.backbone))


def test_epoch_0_gives_the_frozen_probes_outputs(made):
    """The warm start is the probe itself: same standardisation, same head, its bias but for the class balance."""
    loss, _ = made_loss(made, "full")
    found = loss.outputs(np.arange(len(made.ids)))[0]
    frozen = made.probe(cls=made.features.cls).logits
    shift = (frozen - found).mean(0).detach()
    torch.testing.assert_close(found + shift, frozen, atol=1e-4, rtol=1e-4)
    labels = made.job.targets[made.job.train, 0]
    expected = np.log((labels == 1).sum() / (labels == 0).sum())  # the log odds that balancing took out
    assert float(shift) == pytest.approx(expected, abs=1e-4)


def made_loss(made: Made, mode: str, settings: FinetuneSettings = QUICK, job: ProbeJob | None = None, probe=None):
    backbone, _ = load(made.model, dtype=torch.float32)
    torch.manual_seed(0)
    tunable = make_trainable(backbone, mode, settings)
    run = _Run(
        open_accelerator(settings.mixed_precision),
        tunable,
        probe or made.probe,
        made.inputs,
        made.ids,
        job or made.job,
        mode,
        settings,
    )
    return run.loss, run


@pytest.mark.parametrize(("mode", "trained"), [("last_1", ("layers.2.", "norm.")), ("lora", ("lora_",))])
def test_only_what_the_mode_names_changes(made, mode, trained):
    backbone, _ = load(made.model, dtype=torch.float32)
    before = weights(backbone)
    result = finetuned(made, mode, settings=QUICK)
    after = weights(result.backbone)
    for name, value in after.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if "lora_" in name:
            assert any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
        elif plain.startswith(trained):
            continue
        else:
            assert torch.equal(value, before[plain]), name
    assert result.best_epoch == 0 or any(
        "lora_B" in name and bool(value.any()) or name in before and not torch.equal(value, before[name])
        for name, value in after.items()
    )


def test_training_moves_what_it_should(made):
    for mode, expected in (("last_2", {"layers.1", "layers.2", "norm"}), ("full", None)):
        loss, run = made_loss(made, mode)
        before = weights(run.backbone)
        run._step(np.asarray(made.job.train), 1, 0)
        moved = {name for name, value in weights(run.backbone).items() if not torch.equal(value, before[name])}
        if expected is None:
            assert {name for name in before if name not in moved} == {"embeddings.mask_token"}
        else:
            assert {
                ".".join(name.split(".")[:2]) if name.startswith("layers") else name.split(".")[0] for name in moved
            } == expected


def test_lora_parameters_are_counted(made):
    result = finetuned(
        made, "lora", settings=FinetuneSettings(epochs=1, lora=EncoderLoraSettings(rank=2, layers=["q_proj", "v_proj"]))
    )
    width, layers = 24, 3
    assert result.trainable_parameters == layers * 2 * 2 * (width + width) + width + 1
    assert result.peak_memory_mb > 10 and result.seconds > 0


def test_merged_adapters_give_the_same_outputs_and_load_from_their_folder(made, tmp_path):
    _, run = made_loss(made, "lora")
    for step in range(3):
        run._step(np.asarray(made.job.train), 1, step % run.steps_an_epoch)
    run.progress.best_state = trained_state(run.model)
    result = run.finish()
    volumes = [made.inputs.read(name) for name in made.ids[:4]]
    with torch.no_grad():
        apart = torch.stack(encode(result.backbone, volumes, patches=False))
        plain = torch.stack(encode(load(made.model)[0], volumes, patches=False))
    assert float((apart - plain).abs().max()) > 1e-3  # the adapters do something
    folder = save_backbone(tmp_path / "out", result, load(made.model)[1], base=made.model)
    assert folder.name == "adapter" and not (folder / "model.safetensors").exists()
    kept = load_file(folder / "adapter_model.safetensors")
    assert kept and all("lora_" in name for name in kept)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 200_000
    assert str(made.model.parent) not in (folder / "adapter_config.json").read_text()
    with torch.no_grad():
        together = torch.stack(encode(merged(copy.deepcopy(result.backbone)), volumes, patches=False))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    (tmp_path / "out" / made.model.name).symlink_to(made.model)
    loaded, _ = load(folder)
    with torch.no_grad():
        again = torch.stack(encode(loaded, volumes, patches=False))
    torch.testing.assert_close(again, apart, atol=1e-5, rtol=1e-4)
    result.probe.check_features(weight_hash(folder))


def test_adapters_of_a_local_base_that_is_not_there_are_refused(made, tmp_path):
    result = finetuned(made, "lora", settings=FinetuneSettings(epochs=1))
    folder = save_backbone(tmp_path / "out", result, load(made.model)[1], base=made.model)
    with pytest.raises(VoxelFMError, match="put that model's folder beside it"):
        load(folder)


def test_adapters_are_not_put_on_other_weights(made, tmp_path):
    result = finetuned(made, "lora", settings=FinetuneSettings(epochs=1))
    folder = save_backbone(tmp_path / "out", result, load(made.model)[1], base=made.model)
    other = load(made.model)[0]
    with torch.no_grad():
        other.norm.weight.add_(0.1)
    other.save_pretrained(tmp_path / "out" / made.model.name)
    load(made.model)[1].save_pretrained(tmp_path / "out" / made.model.name)
    with pytest.raises(VoxelFMError, match="other weights"):
        load(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(VoxelFMError, match="other formats are not opened"):
        load(folder)


def set_scores(monkeypatch, *scores: float) -> None:
    """The validation rows give these scores, epoch 0 first."""
    left = iter(scores)
    monkeypatch.setattr(TuningLoss, "validate", lambda _: next(left))


def test_full_fine_tuning_saves_an_ordinary_model_and_a_probe_for_it(made, tmp_path, monkeypatch):
    set_scores(monkeypatch, 0.0, 1.0, 2.0)
    result = finetuned(made, "full", settings=QUICK)
    folder = save_backbone(tmp_path / "out", result, load(made.model)[1], base=made.model)
    backbone, processor = load(folder)
    assert processor.patch_size == 8
    features = backbone_features(backbone, made.inputs, made.ids)
    ours = backbone_features(result.backbone, made.inputs, made.ids)
    torch.testing.assert_close(features.cls, ours.cls)
    result.probe.check_features(weight_hash(folder))
    with pytest.raises(ValueError, match="weights"):
        result.probe.check_features(weight_hash(made.model))


def test_training_learns_what_frozen_features_do_not_hold(made):
    settings = FinetuneSettings(epochs=15, batch_size=10, learning_rate=5e-5, layer_decay=1.0, noise=0.0)
    job = replace(made.job, validation=np.zeros(0, dtype=int))
    result = finetuned(made, "full", settings=settings, job=job)
    features = backbone_features(result.backbone, made.inputs, made.ids)
    found = result.probe(cls=features.cls).logits[:, 0].detach().numpy()
    frozen = made.probe(cls=made.features.cls).logits[:, 0].detach().numpy()
    labels = made.job.targets[made.test, 0]
    tuned_auc, frozen_auc = (roc_auc_score(labels, scores[made.test]) for scores in (found, frozen))
    assert tuned_auc > 0.95 and frozen_auc < 0.85
    losses = [entry["loss"] for entry in result.history[1:]]
    assert losses[-1] < 0.2 * losses[0]
    assert result.best_epoch == 15 and math.isnan(result.score) and "no validation rows" in result.notes[0]


def test_the_frozen_probe_is_kept_where_no_epoch_is_better(made, monkeypatch):
    set_scores(monkeypatch, 0.0, -1.0, -2.0)
    result = finetuned(made, "last_1", settings=QUICK)
    assert result.best_epoch == 0 and "frozen probe" in result.notes[0]
    # What was kept is the probe it started from.
    torch.testing.assert_close(result.probe.head.weight, made.probe.head.weight)
    torch.testing.assert_close(result.probe.head.bias, made.probe.head.bias)


def test_patience_counts_epochs_without_a_better_score(made, monkeypatch):
    set_scores(monkeypatch, 1.0, 2.0, 0.0, 1.5, 3.0)
    settings = FinetuneSettings(epochs=9, batch_size=None, patience=2)
    result = finetuned(made, "last_1", settings=settings)
    assert result.best_epoch == 1 and result.epochs == 3


def test_gradients_do_not_depend_on_the_micro_batch_or_on_checkpointing(made):
    rows = np.asarray(made.job.train)
    found = []
    for settings in (
        FinetuneSettings(micro_batch=len(rows), noise=0.1),
        FinetuneSettings(micro_batch=3, noise=0.1),
        FinetuneSettings(micro_batch=3, noise=0.1, gradient_checkpointing=True),
    ):
        for mode in ("full", "lora"):
            loss, run = made_loss(made, mode, settings)
            value = loss.backward(rows, epoch=1, step=0)
            found.append((mode, value, gradients(run.model)))
    for mode in ("full", "lora"):
        first, *others = (entry for entry in found if entry[0] == mode)
        for _, value, grads in others:
            assert value == pytest.approx(first[1], rel=1e-5)
            for name, gradient in grads.items():
                torch.testing.assert_close(gradient, first[2][name], atol=2e-6, rtol=1e-3, msg=name)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_survival_gradients_are_those_of_the_full_risk_sets(made):
    rng = np.random.default_rng(3)
    rows = len(made.ids)
    times = np.stack([rng.exponential(size=rows).round(1), rng.integers(0, 2, rows)], axis=1)  # with ties
    job = ProbeJob("death", times, made.job.train, made.job.validation)
    config = VoxelFMProbeConfig(task="survival", head="linear", feature_size=24, id2label={0: "event"})
    features = made.features.standardised(job.train)
    probe = make_probe(config, fit_probes(features, [job], config), features)
    settings = FinetuneSettings(micro_batch=3, batch_size=4, noise=0.0)
    loss, run = made_loss(made, "full", settings, job, probe)
    assert run.steps_an_epoch == 1  # the batch size does not cut risk sets
    value = loss.backward(np.asarray(job.train), epoch=1, step=0)
    ours = gradients(run.model)
    run.model.zero_grad()
    outputs = run.model([made.inputs.read(made.ids[row]) for row in job.train])
    targets = torch.from_numpy(times[job.train].astype(np.float32))[None]
    expected = cox_loss(outputs, targets, torch.ones(targets.shape[:2]))[0]
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in gradients(run.model).items():
        torch.testing.assert_close(ours[name], gradient.float(), atol=1e-5, rtol=1e-3, msg=name)


def test_missing_labels_and_class_balance_are_the_probes(made):
    """The loss of all rows at epoch 0 is that of a probe's fit: masked, balanced, without the prevalence."""
    rng = np.random.default_rng(5)
    targets = np.column_stack([made.job.targets[:, 0], rng.integers(0, 2, len(made.ids))]).astype(float)
    targets[made.job.train[:4], 0] = np.nan
    targets[made.job.train[5:8], 1] = np.nan
    job = ProbeJob("two", targets, made.job.train, made.job.validation)
    names = {0: "a", 1: "b"}
    config = VoxelFMProbeConfig(
        task="classification", head="linear", feature_size=24, id2label=names, problem_type="multi_label_classification"
    )
    features = made.features.standardised(job.train)
    probe = make_probe(config, fit_probes(features, [job], config), features)
    loss, _ = made_loss(made, "full", FinetuneSettings(noise=0.0, micro_batch=5), job, probe)
    value = loss.backward(np.asarray(job.train), epoch=1, step=0)
    train = job.train
    known = targets[train]
    shift = np.log(np.nansum(known == 1, 0) / np.nansum(known == 0, 0))
    logits = probe(cls=made.features.cls[torch.as_tensor(train)]).logits.detach().numpy() - shift
    summed = total = 0.0
    for column in range(2):
        labels = known[:, column]
        for label in (0, 1):
            members = labels == label
            chances = 1 / (1 + np.exp(-logits[members, column]))
            share = len(train) / 2
            summed += share * np.mean(-np.log(chances if label else 1 - chances))
            total += share
    assert value == pytest.approx(summed / total, rel=1e-4)


def test_regression_targets_are_standardised_by_training_rows(made):
    values = np.linspace(100, 300, len(made.ids))[:, None]
    job = ProbeJob("size", values, made.job.train, made.job.validation)
    config = VoxelFMProbeConfig(
        task="regression", head="linear", feature_size=24, id2label={0: "size"}, problem_type="regression"
    )
    features = made.features.standardised(job.train)
    fits = fit_probes(features, [job], config)
    probe = make_probe(config, fits, features)
    loss, run = made_loss(made, "last_1", FinetuneSettings(noise=0.0), job, probe)
    logits = probe_logits(features, fits, config, np.asarray(job.train))[0, :, 0]
    mean, scale = values[job.train].mean(), values[job.train].std()
    expected = np.mean((logits - (values[job.train, 0] - mean) / scale) ** 2)
    assert loss.backward(np.asarray(job.train), epoch=1, step=0) == pytest.approx(expected, rel=1e-3)
    run.progress.best_state = trained_state(run.model)
    assert run.finish().probe.config.target_mean == pytest.approx([mean])


def test_scans_of_unequal_sizes_and_patch_heads(made):
    targets = np.random.default_rng(0).uniform(0, 1, (len(made.ids), 3))
    config = VoxelFMProbeConfig(task="localization", head="position", feature_size=24, num_attention_heads=2)
    grids = backbone_features(load(made.model)[0], made.inputs, made.ids, patches=True)
    assert len({grids.patches(row).shape for row in range(len(made.ids))}) > 1
    job = ProbeJob("place", targets, made.job.train, made.job.validation)
    features = grids.standardised(job.train)
    probe = make_probe(config, fit_probes(features, [job], config), features)
    result = finetuned(made, "lora", settings=QUICK, job=job, probe=probe)
    assert result.epochs == 2 and math.isfinite(result.score)
    with pytest.raises(RecipeError, match="flip"):
        finetuned(made, "lora", settings=FinetuneSettings(flip=True), job=job, probe=probe)


def test_segmentation(made):
    def maps(row):
        d, h, w = (side // 4 for side in made.inputs.read(made.ids[row]).shape[1:])
        labels = np.zeros((d, h, w), dtype=int)
        labels[: d // 2] = 1
        return labels

    config = VoxelFMProbeConfig(
        task="segmentation", head="decoder", feature_size=24, head_hidden_size=8, id2label={0: "none", 1: "low"}
    )
    annotated = np.array([[True, row % 2 == 0] for row in range(len(made.ids))])
    job = ProbeJob("map", maps, made.job.train[:6], made.job.validation[:2], annotated=annotated.__getitem__)
    features = backbone_features(load(made.model)[0], made.inputs, made.ids, patches=True).standardised(job.train)
    from voxelfm_hf.training.probe.settings import ProbeSettings

    fits = fit_probes(features, [job], config, settings=ProbeSettings(epochs=1, batch_size=1, evaluate_every=1))
    probe = make_probe(config, fits, features)
    result = finetuned(made, "last_1", settings=QUICK, job=job, probe=probe)
    assert [entry["loss"] is None for entry in result.history] == [True, False, False]
    assert result.history[0]["score"] == pytest.approx(fits[0].score, rel=1e-3)  # the probe's own validation loss


@pytest.mark.parametrize("mode", ["lora", "last_2"])
def test_resume_equals_not_stopping(made, tmp_path, monkeypatch, mode):
    settings = FinetuneSettings(epochs=4, batch_size=6, micro_batch=4, noise=0.1, input_noise=0.05, flip=True)
    whole = finetuned(made, mode, settings=settings, folder=tmp_path / "whole")
    original = _Run._step

    def broken(self, order, epoch, step):
        if (epoch, step) == (3, 1):
            raise KeyboardInterrupt
        return original(self, order, epoch, step)

    monkeypatch.setattr(_Run, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        finetuned(made, mode, settings=settings, folder=tmp_path / "cut")

    def interrupted(self, order, epoch, step):
        if (epoch, step) == (3, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, order, epoch, step)

    monkeypatch.setattr(_Run, "_step", interrupted)
    with pytest.raises(VoxelFMError, match="Asked to stop in epoch 3"):
        finetuned(made, mode, settings=settings, folder=tmp_path / "cut")
    monkeypatch.setattr(_Run, "_step", original)
    with pytest.raises(RecipeError, match="other settings"):
        finetuned(made, mode, settings=QUICK, folder=tmp_path / "cut")
    resumed = finetuned(made, mode, settings=settings, folder=tmp_path / "cut")
    assert resumed.history == whole.history and resumed.best_epoch == whole.best_epoch
    assert same(weights(whole.backbone), weights(resumed.backbone))
    assert same(weights(whole.probe), weights(resumed.probe))
    assert not any((tmp_path / "cut").iterdir())


def test_seeds(made):
    first, again, other = (
        finetuned(
            made,
            "last_1",
            settings=QUICK,
            job=ProbeJob("a", made.job.targets, made.job.train, made.job.validation, seed),
        )
        for seed in (0, 0, 1)
    )
    assert first.history == again.history and first.history != other.history


def test_unknown_modes_are_refused():
    assert [blocks_of_mode(mode, 6) for mode in ("frozen", "last_2", "full", "lora")] == [0, 2, 7, None]
    for mode in ("last_0", "first_2", "last"):
        with pytest.raises(RecipeError, match="no way of fine-tuning"):
            blocks_of_mode(mode, 6)
    with pytest.raises(RecipeError, match="more blocks"):
        blocks_of_mode("last_7", 6)
    with pytest.raises(ValueError, match="lora.layers names query"):
        EncoderLoraSettings(layers=["query"])


def test_bfloat16_trains(made):
    from accelerate.state import AcceleratorState

    # A process keeps the precision of its first accelerator.
    AcceleratorState._reset_state()
    try:
        settings = FinetuneSettings(epochs=1, batch_size=None, mixed_precision="bf16")
        result = finetuned(made, "lora", settings=settings)
    finally:
        AcceleratorState._reset_state()
    assert result.backbone.dtype == torch.float32 and math.isfinite(result.history[1]["loss"])
