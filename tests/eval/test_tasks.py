import csv
import inspect
import json
import re
from dataclasses import replace
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from voxelfm_hf.eval.labels import LabelTable, read_labels
from voxelfm_hf.eval.metrics.catalogue import find_measure
from voxelfm_hf.eval.probes.run import fit_and_evaluate, save_probe
from voxelfm_hf.eval.tasks import load_task, task_names
from voxelfm_hf.eval.tasks.grid import fit_grid
from voxelfm_hf.eval.tasks.localization import to_lps, to_normalised
from voxelfm_hf.eval.tasks.retrieval import pool_recall
from voxelfm_hf.eval.tasks.segmentation import on_patch_grid, read_mask
from voxelfm_hf.modeling.configuration_voxelfm_probe import HEADS_OF_TASK
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.store import FeatureStore, StoreWriter
from voxelfm_hf.training.probe.settings import ProbeSettings
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import LabelError, ModelError, RecipeError, StoreError

RUN = {"model": "tiny", "weight_hash": "f" * 64, "processor": {"hu_range": [-1000, 1900]}, "patches": True}
GRID, PATCH_MM = (3, 4, 4), 8.0


def patch_affine(shift):
    """Patch (d, h, w, 1) -> LPS mm: patches of 8 mm, the centre of the first one at `shift`."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = PATCH_MM
    affine[:3, 3], affine[3, 3] = shift, 1
    return affine


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 120 scans of 60 patients and a label table; CLS holds the truth with noise, patches hold an organ."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    rows, patches, table = [], {}, []
    for i in range(120):
        size, severity, sick = rng.normal(size=3)
        noise = 0.3 * rng.normal(size=16)
        noise[:3] += [size, severity, 2 * (sick > 0.5)]
        shift = rng.uniform(-50, 50, 3)
        organ = np.zeros(GRID, dtype=int)
        corner = [int(rng.integers(0, n - 1)) for n in GRID]
        organ[tuple(slice(c, c + 2) for c in corner)] = 1
        grid = 0.5 * rng.normal(size=(*GRID, 8))
        grid[..., 0] += 4 * organ
        affine = patch_affine(shift)
        centre = affine[:3, :3] @ (np.array(corner) + 0.5) + affine[:3, 3]
        life, censoring = 10 * rng.exponential(np.exp(-1.5 * severity)), rng.exponential(20)
        identifier = f"scans/{i}.nii.gz"
        rows.append(
            {
                "id": identifier,
                "source": identifier,
                "cls": noise.astype(np.float32),
                "grid": list(GRID),
                "spacing_mm": [1.0] * 3,
                "effective_spacing_mm": [1.0] * 3,
                "field_of_view_mm": [n * PATCH_MM for n in GRID],
                "patch_affine": affine.ravel().tolist(),
                "notes": [],
            }
        )
        patches[identifier] = grid
        # The mask on a grid of its own: 4 mm voxels that cover the patches, written with the axes of NIfTI (RAS).
        mask = np.kron(organ, np.ones((2, 2, 2))).astype(np.uint8).transpose(2, 1, 0)
        first = affine[:3, 3] - PATCH_MM / 4
        to_ras = np.diag([-4.0, -4, 4, 1])
        to_ras[:3, 3] = first * [-1, -1, 1]
        nib.save(nib.Nifti1Image(mask, to_ras), folder / f"mask{i}.nii.gz")
        split = ("train", "train", "train", "val", "test")[i // 2 % 5]
        table.append(
            {
                "file": f"{i}.nii.gz",
                "patient_id": i // 2,
                "split": split,
                "sex": "FM"[i // 2 % 2],
                "age": 30 + i // 2,
                "sick": int(sick > 0.5),
                "luck": int(rng.integers(0, 2)),
                "grade": ("low", "mid", "high")[int(np.digitize(severity, [-0.4, 0.4]))],
                "size": round(100 + 10 * size, 3),
                "time": round(min(life, censoring), 2),
                "event": int(life <= censoring),
                **dict(zip("xyz", centre.round(3), strict=True)),
                "mask": f"mask{i}.nii.gz",
                "contoured_organ": int(i != 8),
            }
        )
    writer = StoreWriter(folder / "store", RUN)
    writer.add(rows, patches)
    with open(folder / "labels.csv", "w", newline="") as file:
        out = csv.DictWriter(file, table[0])
        out.writeheader()
        out.writerows(table)
    return folder


@pytest.fixture
def store(made):
    return FeatureStore(made / "store")


@pytest.fixture
def labels(made):
    return read_labels(made / "labels.csv")


QUICK = {"replicates": 100}


def test_findings_from_labels_to_a_saved_probe(store, labels, tmp_path):
    probe, reports, data, predictions = fit_and_evaluate(
        store, labels, task="classification", read={"targets": ["sick", "luck"]}, evaluate=QUICK
    )
    test = data.rows("test")
    assert reports["sick"]["auroc"] == pytest.approx(roc_auc_score(data.targets[test, 0], predictions[:, 0]))
    assert reports["sick"]["auroc"] > 0.9 > 0.8 > reports["luck"]["auroc"]
    assert reports["sick"]["estimates"]["auroc"]["patients"] == 12 and reports["sick"]["estimates"]["auroc"]["n"] == 24
    assert {row["level"] for row in reports["sick"]["subgroups"]} == {"F", "M", "<40", "40-60", "60-75", ">=75"}
    assert reports["macro"]["auroc"] == pytest.approx((reports["sick"]["auroc"] + reports["luck"]["auroc"]) / 2)

    save_probe(tmp_path / "probe", probe, reports, data, predictions)
    again = VoxelFMProbe.from_pretrained(tmp_path / "probe")
    found = again.predict(cls=torch.from_numpy(store.cls[[store.ids.index(data.ids[r]) for r in test]])).predictions
    np.testing.assert_allclose(found.numpy(), predictions, atol=1e-6)
    assert again.config.base_model_hash == RUN["weight_hash"]
    assert again.config.metrics["sick/auroc"]["value"] == pytest.approx(reports["sick"]["auroc"])
    assert again.config.fit["patients"] == {"train": 36, "val": 12, "test": 12}
    json.loads((tmp_path / "probe" / "results.json").read_text(), parse_constant=pytest.fail)
    written = list(csv.reader((tmp_path / "probe" / "predictions.csv").read_text().splitlines()))
    assert written[0] == ["id", "predicted_sick", "predicted_luck"] and len(written) == 25


def test_exclusive_classes(store, labels):
    names = ["low", "mid", "high"]
    probe, reports, data, predictions = fit_and_evaluate(
        store,
        labels,
        task="classification",
        read={"targets": ["grade"], "exclusive": True, "classes": names},
        evaluate=QUICK,
    )
    assert [probe.config.id2label[i] for i in range(3)] == names
    assert reports["classes"]["macro_auroc"] > 0.8 and predictions.sum(1) == pytest.approx(1, abs=1e-5)


def test_pooler_reads_patches(store, labels):
    settings = ProbeSettings(epochs=3, batch_size=16, evaluate_every=1)
    data = load_task("classification").read(store, labels, targets=["sick", "luck"], head="pooler")
    probe = load_task("classification").fit(data, head_hidden_size=16, settings=settings)
    assert load_task("classification").predict(probe, data, data.rows("test")).shape == (24, 2)


def test_regression_with_interval(store, labels):
    probe, reports, data, predictions = fit_and_evaluate(
        store, labels, task="regression", read={"targets": ["size"], "units": ["mm"]}, evaluate=QUICK
    )
    assert reports["size"]["r2"] > 0.8 and probe.config.target_unit == ["mm"]
    found = probe.predict(cls=data.features.cls[data.rows("test")])
    inside = (found.low.numpy() <= data.targets[data.rows("test")]) & (
        data.targets[data.rows("test")] <= found.high.numpy()
    )
    assert inside.mean() > 0.7
    np.testing.assert_allclose(found.predictions.numpy(), predictions, rtol=1e-5)


def test_survival_with_horizon_and_curves(store, labels):
    probe, reports, data, predictions = fit_and_evaluate(
        store, labels, task="survival", read={"horizons": [5.0], "unit": "months"}, evaluate=QUICK
    )
    assert reports["event"]["c_index"] > 0.75 and reports["event"]["auroc_at_5"] > 0.75
    curves = probe.survival(torch.from_numpy(predictions), torch.tensor([0.0, 1.0, 5.0]))
    order = predictions[:, 0].argsort()
    assert (curves[:, 0] == 1).all() and (curves.diff(dim=1) <= 0).all()
    assert (curves[order, 2].diff() <= 0).all()


def test_retrieval(store, labels):
    _, reports, data, _ = fit_and_evaluate(
        store, labels, task="retrieval", read={"targets": ["sick", "luck"], "alike": {"age": 30}}, evaluate=QUICK
    )
    assert reports["sick"]["recall_at_1"] > 2 * reports["sick"]["estimates"]["recall_at_1"]["chance"]
    luck = reports["luck"]["estimates"]["recall_at_5"]
    assert luck["low"] < luck["chance"] < luck["high"]
    assert "fewer than 99 negatives" in reports["sick"]["note"]


def test_pool_recall_averages_over_every_pool_and_order():
    positive, negatives = 0.5, np.array([0.9, 0.5, 0.5, 0.3, 0.1])
    expected = []
    for pool in combinations(negatives, 3):
        ahead, tied = sum(n > positive for n in pool), sum(n == positive for n in pool)
        expected.append(np.mean([ahead + j < 2 for j in range(tied + 1)]))
    assert pool_recall(np.array([positive]), negatives, k=[2], negatives=3)[0, 0] == pytest.approx(np.mean(expected))
    assert pool_recall(np.zeros(1), np.zeros(500), k=[1])[0, 0] == pytest.approx(0.01)
    assert np.isnan(pool_recall(np.zeros(1), np.zeros(0), k=[1])).all()


def test_points_of_a_patient_with_both_labels_stay_out_of_each_others_pools(store, labels):
    task = load_task("retrieval")
    data = task.read(store, labels, targets=["sick"])
    rows = np.array([0, 2, 3, 4])
    data.targets[rows, 0] = [1, 1, 0, 0]  # rows 2 and 3 are one patient
    similar = np.array([[1, 0.5, 0.9, 0.1], [0.5, 1, 0.9, 0.1], [0.9, 0.9, 1, 0], [0.1, 0.1, 0, 1]])
    report = task.evaluate(similar, data, rows, k=[1], replicates=0)
    # Row 3 would rank first for both queries, but it is the patient of row 2, a query and a positive.
    assert report["sick"]["recall_at_1"] == 1 and report["sick"]["estimates"]["recall_at_1"]["n"] == 2


def test_the_chance_of_retrieval_is_what_scans_that_all_look_alike_give(store, labels):
    task = load_task("retrieval")
    data = task.read(store, labels, targets=["sick"])
    rows = np.arange(0, 40, 2)  # one a patient
    data.targets[rows, 0] = [1] * 4 + [0] * 16
    report = task.evaluate(np.zeros((20, 20)), data, rows, negatives=9, replicates=0)["sick"]
    for k in (1, 5, 10):
        found = report["estimates"][f"recall_at_{k}"]
        assert found["value"] == pytest.approx(k / 10) and found["chance"] == pytest.approx(k / 10)


def test_localization_in_millimetres(store, labels):
    settings = ProbeSettings(epochs=40, batch_size=8, learning_rate=3e-3, evaluate_every=1, patience=10)
    probe, reports, data, predictions = fit_and_evaluate(
        store,
        labels,
        task="localization",
        read={"targets": ["x", "y", "z"]},
        fit={"settings": settings},
        evaluate=QUICK,
    )
    report = reports["point"]
    assert report["error_mm"] < 0.5 * report["mean_position_error_mm"]
    truth = np.array([labels.column(axis) for axis in "xyz"]).T[data.rows("test")]
    assert report["error_mm"] == pytest.approx(np.linalg.norm(predictions[:, 0] - truth, axis=1).mean())


def test_a_box_is_two_points(store, labels, tmp_path):
    corners = labels.take(range(len(labels)))
    for axis in "xyz":
        corners.columns[f"{axis}2"] = [value + 4 for value in corners.columns[axis]]
    probe, reports, data, predictions = fit_and_evaluate(
        store,
        corners,
        task="localization",
        read={"targets": ["x", "y", "z", "x2", "y2", "z2"], "name": "box"},
        fit={"settings": ProbeSettings(epochs=40, batch_size=8, learning_rate=3e-3, evaluate_every=1, patience=10)},
        evaluate=QUICK,
    )
    assert predictions.shape == (24, 2, 3) and probe.config.num_points == 2
    assert reports["box"]["error_mm"] < 0.6 * reports["box"]["mean_position_error_mm"]
    first = np.array([corners.column(axis) for axis in "xyz"]).T[data.rows("test")]
    truth = np.stack([first, first + 4], axis=1)
    assert reports["box"]["error_mm"] == pytest.approx(np.linalg.norm(predictions - truth, axis=2).mean())
    save_probe(tmp_path / "box", probe, reports, data, predictions)
    again = VoxelFMProbe.from_pretrained(tmp_path / "box")
    rows = data.rows("test")
    np.testing.assert_allclose(load_task("localization").predict(again, data, rows), predictions, atol=1e-4)
    with pytest.raises(LabelError, match="a point is three columns"):
        load_task("localization").read(store, corners, targets=["x", "y", "z", "x2"])


def test_normalised_positions_round_trip_and_end_at_the_faces():
    affine = patch_affine([10.0, 20, 30])
    corner = affine[:3, 3] - PATCH_MM / 2
    np.testing.assert_allclose(to_normalised(corner, affine, GRID), [0, 0, 0], atol=1e-12)
    point = np.array([[12.0, 25, 41]])
    np.testing.assert_allclose(to_lps(to_normalised(point, affine, GRID), affine, GRID), point)


def test_points_in_ras_are_noticed(store, labels):
    far = labels.take(range(len(labels)))
    far.columns["x"] = [value + 1000 for value in far.columns["x"]]
    with pytest.raises(LabelError, match="every point lies outside its scan: give LPS"):
        load_task("localization").read(store, far, targets=["x", "y", "z"])


def test_segmentation_on_the_grid_of_the_masks(store, labels, made):
    settings = ProbeSettings(epochs=4, batch_size=1, learning_rate=3e-3, evaluate_every=1, patience=10)
    probe, reports, data, predictions = fit_and_evaluate(
        store,
        labels,
        task="segmentation",
        read={"classes": ["background", "organ"], "folder": made, "voxels_per_patch": 2},
        fit={"settings": settings, "head_hidden_size": 16},
        evaluate=QUICK,
    )
    assert reports["structures"]["dice_organ"] > 0.8 and reports["structures"]["nsd_organ"] > 0.8
    # Row 8 has no contour of the organ: its score is left out.
    assert reports["structures"]["estimates"]["dice_organ"]["n"] == 23 and len(predictions) == 24
    row = data.rows("test")[0]
    mask = read_volume(data.options["paths"][row], assume_hu=True)
    assert predictions[0].shape == mask.hu.shape
    restored = mask.restore(predictions[0])
    assert restored.shape == nib.load(data.options["paths"][row]).shape


def test_masks_follow_their_affine(store, labels, made):
    data = load_task("segmentation").read(store, labels, classes=["background", "organ"], folder=made)
    row = 5
    expected = store.patches(data.ids[row])[..., 0] > 2
    np.testing.assert_array_equal(data.maps(row)[::4, ::4, ::4] == 1, expected)
    mask = read_mask(made / "mask5.nii.gz", num_classes=2)
    with pytest.raises(LabelError, match="lies outside its scan"):
        on_patch_grid(mask, patch_affine([900.0, 0, 0]), np.array(GRID), voxels_per_patch=2)
    shifted = data.affines[row].copy()
    shifted[2, 3] += PATCH_MM  # one patch upwards: the top layer lies above the mask
    partly = on_patch_grid(mask, shifted, data.grids[row], voxels_per_patch=2)
    assert (partly[-2:] == -1).all() and (partly[:-2] >= 0).all()


def test_bad_masks(store, labels, made, tmp_path):
    with pytest.raises(LabelError, match="holds 1, which is no class"):
        read_mask(made / "mask5.nii.gz", num_classes=1)
    with pytest.raises(LabelError, match="does not exist"):
        read_mask(tmp_path / "absent.nii.gz", num_classes=2)
    with pytest.raises(LabelError, match="a background and at least one class"):
        load_task("segmentation").read(store, labels, classes=["organ"], folder=made)


def test_a_grid_of_fits(store, labels):
    data = load_task("classification").read(store, labels, targets=["sick", "luck"])
    grid = fit_grid(data, fractions=[0.05, 1.0], seeds=[0, 1])
    assert [(g.target, g.fraction, g.seed) for g in grid][:3] == [
        ("sick", 0.05, 0),
        ("luck", 0.05, 0),
        ("sick", 1.0, 0),
    ]
    assert len(grid) == 8 and grid[0].train_rows == 4 and grid[2].train_rows == 72
    full = grid[2]
    assert roc_auc_score(data.targets[full.rows, 0], full.predictions) > 0.9
    # The grid and the single fit are one loop: same rows, same seed, same answer.
    alone = load_task("classification").predict(load_task("classification").fit(data, seed=0), data, full.rows)
    np.testing.assert_allclose(full.predictions, alone[:, 0], atol=1e-4)
    tiny = fit_grid(data, fractions=[0.001], seeds=range(4))
    assert any("needs both classes" in g.note and np.isnan(g.predictions).all() for g in tiny)


@pytest.mark.parametrize(
    ("name", "read"),
    [("regression", {"targets": ["size"]}), ("survival", {}), ("classification", {"targets": ["sick"]})],
)
def test_a_fit_of_a_grid_is_the_fit_alone(store, labels, name, read):
    task = load_task(name)
    data = task.read(store, labels, **read)
    (found,) = fit_grid(data)
    probe = task.fit(data)
    np.testing.assert_allclose(found.predictions, task.predict(probe, data, found.rows)[:, 0], rtol=1e-4, atol=1e-4)
    if name == "classification":
        assert found.threshold == pytest.approx(probe.config.threshold[0], abs=1e-4)


def test_a_grid_says_why_a_cell_has_no_fit(store, labels):
    data = load_task("survival").read(store, labels)
    calm = data.targets.copy()
    calm[data.rows("train"), 1] = 0
    (found,) = fit_grid(replace(data, targets=calm))
    assert found.note == "no event among 72 training scans" and np.isnan(found.predictions).all()


def test_ceiling_features_know_the_answer(store, labels):
    exclusive = load_task("classification").read(store, labels, targets=["grade"], exclusive=True)
    found = load_task("classification").ceiling(exclusive)
    assert (found.sum(1) == 1).all() and (found.argmax(1) == exclusive.targets[:, 0]).all()
    survival = load_task("survival").read(store, labels)
    np.testing.assert_array_equal(load_task("survival").ceiling(survival)[:, 0], survival.targets[:, 0])
    sick = load_task("retrieval").read(store, labels, targets=["sick"])
    vectors = load_task("retrieval").ceiling(sick)
    alike = sick.targets == sick.targets.T
    np.testing.assert_array_equal(np.sign(vectors @ vectors.T), np.where(alike, 1, -1))


def test_features_of_other_weights_are_refused(store, labels):
    task = load_task("classification")
    data = task.read(store, labels, targets=["sick"])
    probe = task.fit(data)
    probe.config.base_model_hash = "0" * 64
    with pytest.raises(ModelError, match="embed the scans with that model"):
        task.predict(probe, data, data.rows("test"))


def test_a_store_without_patches_and_unknown_tasks(made, labels, tmp_path):
    writer = StoreWriter(tmp_path / "store", RUN | {"patches": False})
    writer.add(FeatureStore(made / "store").table.to_pylist())
    for task, options in (("localization", {"targets": ["x", "y", "z"]}), ("segmentation", {"classes": ["a", "b"]})):
        with pytest.raises(StoreError, match="holds no patch features, which this probe needs: embed with --patches"):
            load_task(task).read(FeatureStore(tmp_path / "store"), labels, **options)
    with pytest.raises(RecipeError, match="there is no task triage: choose one of classification, localization"):
        load_task("triage")
    expected = ["classification", "localization", "regression", "retrieval", "segmentation", "survival"]
    assert task_names() == expected and set(HEADS_OF_TASK) < set(expected)


@pytest.mark.parametrize("name", task_names())
def test_a_task_has_what_probes_cards_and_the_benchmark_take_from_its_file(name):
    """Nothing else lists the tasks: a new file with these names is in every command."""
    task = load_task(name)
    for function in ("read", "fit", "predict", "evaluate", "columns", "judge", "main_metric"):
        assert callable(getattr(task, function))
    assert hasattr(task, "settle") == hasattr(task, "target_columns")  # fits side by side need both
    assert isinstance(task.HAS_MACRO, bool) and find_measure(task.main_metric({}))
    if name in HEADS_OF_TASK:
        assert task.ANSWER and callable(task.counts) and all(find_measure(metric) for metric in task.HEADLINES)
        assert callable(task.why_unfit) and callable(task.answer)
        assert inspect.signature(task.read).parameters["head"].default == HEADS_OF_TASK[name][0]


@pytest.mark.parametrize(
    ("task", "read", "sentence"),
    [
        ("classification", {"targets": ["sick"], "classes": ["no", "yes"]}, "only where they exclude each other"),
        ("regression", {"targets": ["size"], "units": ["mm", "kg"]}, "a unit for each target: got mm, kg for size"),
        ("survival", {"unit": ["days", "years"]}, "one unit, that of its time: got days, years"),
        ("survival", {"horizons": [5, float("inf")]}, "horizons are times above 0, got inf"),
    ],
)
def test_options_that_contradict_the_task_are_one_sentence(store, labels, task, read, sentence):
    with pytest.raises(LabelError, match=re.escape(sentence)):
        load_task(task).read(store, labels, **read)


def test_missing_scans_are_left_out_only_when_allowed(store, labels):
    task = load_task("regression")
    extra = labels.take([*range(len(labels)), 0])
    extra.ids[-1] = "absent.nii.gz"
    extra.columns["patient_id"][-1] = 999
    with pytest.raises(LabelError, match=r"1 of 121 ids .* \(absent.nii.gz\)"):
        task.read(store, extra, targets=["size"])
    data = task.read(store, extra, targets=["size"], allow_missing=True)
    assert len(data.ids) == 120 and "1 labelled scans without features" in data.notes[0]


def test_a_table_without_patients_is_told(store, labels):
    read = load_task("regression").read
    assert read(store, labels, targets=["size"]).patient_column == "patient_id"
    columns = {name: values for name, values in labels.columns.items() if name != "patient_id"}
    data = read(store, LabelTable("labels.csv", labels.ids, columns), targets=["size"])
    assert data.patient_column is None and "no column of patients" in " ".join(data.notes)
    columns["who"] = labels.columns["patient_id"]
    data = read(store, LabelTable("labels.csv", labels.ids, columns), targets=["size"], patient_column="who")
    assert data.patient_column == "who" and not data.notes


def test_training_labels_of_one_class_are_refused(store, labels, made):
    """A column with both classes is of no use when all training scans have the same one."""
    rows = list(csv.DictReader((made / "labels.csv").open()))
    for task, read, change in (
        ("classification", {"targets": ["sick"]}, {"sick": 0}),
        ("classification", {"targets": ["luck", "sick"], "head": "pooler"}, {"sick": 0}),
        ("classification", {"targets": ["grade"], "exclusive": True}, {"grade": "low"}),
        ("survival", {}, {"event": 0}),
    ):
        changed = [{**row, **change} if row["split"] == "train" else row for row in rows]
        columns = {name: [row[name] for row in changed] for name in rows[0]}
        table = LabelTable("labels.csv", columns["file"], columns)
        with pytest.raises(LabelError, match="labels are [01]: a classifier needs both|no training row has an"):
            fit_and_evaluate(store, table, task=task, read=read, evaluate=QUICK)


def test_a_class_without_rows_is_called_by_its_name(store, labels):
    classification, names = load_task("classification"), ["low", "mid", "high", "severe"]
    data = classification.read(store, labels, targets=["grade"], exclusive=True, classes=names)
    rows = data.rows("test")
    reports = classification.evaluate(np.full((len(rows), 4), 0.25), data, rows, replicates=0)
    note = reports["classes"]["estimates"]["macro_auroc"]["note"]
    assert note == "no row of class severe: a macro average needs every class"


def test_one_labelled_training_scan_is_too_few(store, labels):
    kept = [row for row, split in enumerate(labels.column("split")) if split != "train"]
    few = labels.take([*kept, labels.column("split").index("train")])
    with pytest.raises(LabelError, match="1 labelled training scans: a probe needs at least two"):
        fit_and_evaluate(store, few, task="regression", read={"targets": ["size"]}, evaluate=QUICK)


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("size", "large", "column size holds large, which is no number"),
        ("size", "inf", "column size is infinite in 1 rows"),
        ("time", "-1", "column time is negative in 1 rows"),
        ("event", "2", "column event holds 2: use 1 for an event, 0 for censored"),
        ("sick", "maybe", "column sick holds maybe, which is neither 0 nor 1"),
        ("split", "holdout", "column split holds holdout: use train, val and test"),
        ("patient_id", "59", r"1 patients or studies are in two splits"),
        ("patient_id", "", r"1 rows have no patient_id \(0.nii.gz\)"),
        ("file", "1.nii.gz", r"1 ids more than once \(1.nii.gz\): keep one row an id"),
    ],
)
def test_bad_labels_stop_a_probe_with_one_sentence(store, made, tmp_path, column, value, sentence):
    rows = list(csv.DictReader((made / "labels.csv").open()))
    rows[0][column] = value
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    read = {
        "size": ("regression", {"targets": ["size"]}),
        "time": ("survival", {}),
        "event": ("survival", {}),
    }.get(column, ("classification", {"targets": ["sick"]}))
    with pytest.raises(LabelError, match=sentence) as error:
        fit_and_evaluate(store, read_labels(tmp_path / "labels.csv"), task=read[0], read=read[1], evaluate=QUICK)
    assert "\n" not in str(error.value)
