"""The report benchmark: a trained report model beside everything that it must beat, scored on the same test scans.

    DATA/labels.csv          reports: `id_column`, report, split (train, val, test), patient_id if known
    DATA/images/             their scans, or DATA/store/ with features and patches of them

    OUT/store/               features, unless DATA has them
    OUT/NAME/                a training run for each row that is trained (adapter, text_only, cls_only)
    OUT/predictions/*.parquet  what each row wrote about each test scan, and the findings in it
    OUT/visible.json         how well a probe sees each finding in the features of the validation scans
    OUT/results.csv, comparisons.csv, results.md, examples.md

Rows: `adapter`; `shuffled`, the same model shown the scans of other patients; `text_only`, trained with features
shuffled between patients; `cls_only`, without patches; `probes_template`, `retrieval`, `constant` (`baselines`).
Finished parts are kept: run it again after an interruption.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelfm_hf.column_names import PATIENT_COLUMNS, usual_column
from voxelfm_hf.data.phantom.scan_set import write_phantom_set
from voxelfm_hf.data.reports import read_reports, read_rows
from voxelfm_hf.data.reports.reduction import report_target
from voxelfm_hf.eval.benchmark.run import Outcome
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.reports.baselines import constant_report, probe_reports, retrieved_reports, tokens_of
from voxelfm_hf.eval.reports.card import EXAMPLES, write_report_card
from voxelfm_hf.eval.reports.page import (
    TASK,
    VISIBLE_FROM,
    comparison_rows,
    examples_page,
    on_one_line,
    results_page,
    terminal_table,
)
from voxelfm_hf.eval.reports.scores import LabelledReports, label_pairs, score_reports
from voxelfm_hf.eval.result_files import write_csv
from voxelfm_hf.eval.splits import named_splits
from voxelfm_hf.eval.statistics.estimates import forget_patients
from voxelfm_hf.features import EmbedOptions, Task, embed_scans
from voxelfm_hf.files import written_file
from voxelfm_hf.recipes import load_recipe, save_recipe, to_recipe
from voxelfm_hf.report_writer import ReportWriter
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.report.data import scans_by_name, store_tokens
from voxelfm_hf.training.report.parts import stage_folder
from voxelfm_hf.training.report.recipe import ReportRecipe
from voxelfm_hf.training.report.stages import train_reports
from voxelfm_hf.volumes.errors import LabelError, RecipeError, VoxelFMError

logger = logging.getLogger(__name__)

ROWS = ("adapter", "shuffled", "text_only", "cls_only", "probes_template", "retrieval", "constant")
_VISIBLE_FILE = "visible.json"
_EXAMPLES = 6  # in examples.md


@dataclass(frozen=True)
class ReportBenchmarkSettings:
    """What a recipe says under `reports:`.

    Args:
        training: Training recipe of the trained rows, a path or a packaged name.
        overrides: Fields of it that differ, by dotted name.
        rows: Rows to make, names in `ROWS`.
        phantoms: Synthetic people to make where no data are named; 0 makes none.
        id_column: Column that names the scan as the store does.
        max_new_tokens: Longest report.
        batch_size: Reports written at once.
        replicates: Bootstrap draws of patients.
        quick: Fields of this section and of the training recipe (`overrides`) for `--quick`.
    """

    training: str = "report_smollm2"
    overrides: dict[str, Any] = field(default_factory=dict)
    rows: list[str] = field(default_factory=lambda: list(ROWS))
    phantoms: int = 0
    id_column: str = "file"
    max_new_tokens: int = 160
    batch_size: int = 16
    replicates: int = 1000
    quick: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportBenchmarkRecipe:
    """A recipe of the report benchmark."""

    reports: ReportBenchmarkSettings
    title: str = "Reports"


@dataclass(frozen=True, eq=False)
class ReportData:
    """Scans with features and reports, a row each.

    Attributes:
        synthetic: Whether the scans are phantoms.
        ids: In the store.
        texts: The targets, reduced as the trained rows learn them.
        splits, patients: Of each row; its report's id where the patient is unknown.
        patients_known: Whether the table has a column of patients.
    """

    store: FeatureStore
    reports: Path
    ids: list[str]
    texts: list[str]
    splits: np.ndarray
    patients: list[str]
    patients_known: bool
    synthetic: bool

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == split)


def run(name: str | Path, data: Path | None, out: Path, quick: bool = False) -> Outcome:
    """Runs a report recipe, or goes on with an interrupted run of it.

    Args:
        name: Path or name of the recipe.
        data: Folder of the data; without it, synthetic scans are made where the recipe asks for some.
        out: Folder of the results.
        quick: The recipe's short form.

    Returns:
        A table for the terminal, and nothing that failed: a row that cannot be made ends the run.

    Raises:
        VoxelFMError: recipe, data or models do not allow the run.
    """
    recipe = load_recipe(name, ReportBenchmarkRecipe, package="voxelfm_hf.eval")
    settings = _quick(recipe.reports) if quick else recipe.reports
    unknown = [row for row in settings.rows if row not in ROWS]
    if unknown or not settings.rows:
        raise RecipeError(f"reports.rows takes {', '.join(ROWS)}, got {', '.join(unknown) or 'none'}.")
    out.mkdir(parents=True, exist_ok=True)
    save_recipe(replace(recipe, reports=settings), out / "recipe.yaml")
    training = load_recipe(
        settings.training,
        ReportRecipe,
        overrides=[f"--{field_name}={value}" for field_name, value in settings.overrides.items()],
    )
    found = _read(settings, training, data, out)
    written = {row: _written(row, settings, training, found, out) for row in settings.rows}
    return _score(recipe.title, settings, written, found, out, name)


def _quick(settings: ReportBenchmarkSettings) -> ReportBenchmarkSettings:
    """The settings with their short form applied."""
    changes = dict(settings.quick)
    overrides = {**settings.overrides, **changes.pop("overrides", {})}
    values = {**vars(settings), **changes, "overrides": overrides, "quick": {}}
    return to_recipe(values, ReportBenchmarkSettings, source="reports.quick")


def _read(settings: ReportBenchmarkSettings, training: ReportRecipe, data: Path | None, out: Path) -> ReportData:
    """The scans of the data, their features made where there are none."""
    if data is None:
        if not settings.phantoms:
            raise RecipeError("this recipe needs --data FOLDER with labels.csv and images/ (or store/).")
        data = out / "set"
        write_phantom_set(data, count=settings.phantoms)
    table = data / "labels.csv"
    folder = data / "store"
    if not (folder / "run.json").is_file():
        folder = out / "store"
        tasks = [Task(scan) for scan in list_scans([data / "images"])]
        embed_scans(tasks, training.model.vision_model, folder, EmbedOptions(patches=True))
    store = FeatureStore(folder)
    by_name = scans_by_name(store.ids)
    ids, texts, splits, patients = [], [], [], []
    columns = {name.lower(): name for name in next(iter(read_rows(table)))}
    patient_column = usual_column(columns.values(), PATIENT_COLUMNS)
    id_column = settings.id_column if settings.id_column in columns else None
    reports = read_reports(table, columns=training.data.column, id_column=id_column)
    for report, row in zip(reports, read_rows(table), strict=True):
        scan = by_name.get(report.id) or by_name.get(Path(report.id).name)
        if scan is None or report.is_empty:
            continue
        if "split" not in row:
            raise LabelError(f"{table} has no column split: say which rows are train, val and test")
        ids.append(scan)
        texts.append(report_target(report) if training.data.reduce else report.text)
        splits.append(row["split"])
        patients.append((row[patient_column] if patient_column else "") or report.id)
    synthetic = "acquisition_seed" in columns  # only phantoms have one
    named = named_splits(splits, ids, source=table.name)
    found = ReportData(store, table, ids, texts, named, patients, patient_column is not None, synthetic)
    for split in ("train", "val", "test"):
        if not len(found.rows(split)):
            raise LabelError(f"{table} has no row of the split {split} with features and a report")
    mixed = {found.patients[i] for i in found.rows("train")} & {found.patients[i] for i in found.rows("test")}
    if mixed:
        raise LabelError(f"{table} has {len(mixed)} patients in both train and test: keep each on one side")
    return found


def _written(
    row: str, settings: ReportBenchmarkSettings, training: ReportRecipe, data: ReportData, out: Path
) -> LabelledReports:
    """What a row wrote about the test scans, from its file where it is there."""
    path = out / "predictions" / f"{row}.parquet"
    test = data.rows("test")
    reference = [data.texts[i] for i in test]
    patients = [data.patients[i] for i in test]
    ids = [data.ids[i] for i in test]
    if path.is_file():
        table = pq.read_table(path).to_pydict()
        if table["id"] == ids and table["reference"] == reference:
            return label_pairs(table["written"], reference, patients=patients)
        raise RecipeError(f"{path} is of other test scans: name a new folder with --out.")
    logger.info("row %s", row)
    texts = _make(row, settings, training, data, out)
    labelled = label_pairs(texts, reference, patients=patients)
    columns: dict[str, Any] = {"id": ids, "patient_id": patients, "written": texts, "reference": reference}
    for index, finding in enumerate(FINDINGS):
        columns |= {f"stated {finding}": labelled.stated[:, index], f"true {finding}": labelled.true[:, index]}
    with written_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return labelled


def _make(
    row: str, settings: ReportBenchmarkSettings, training: ReportRecipe, data: ReportData, out: Path
) -> list[str]:
    train, test = data.rows("train"), data.rows("test")
    if row == "constant":
        return [constant_report([data.texts[i] for i in train])] * len(test)
    if row == "probes_template":
        said = probe_reports(data.store, data.ids, data.texts, data.splits.tolist(), data.patients, seed=training.seed)
        with written_file(out / _VISIBLE_FILE) as path:
            path.write_text(json.dumps(said.validation_auroc, indent=2) + "\n", encoding="utf-8")
        return said.texts
    kind = "cls" if row == "cls_only" else training.model.feature_tokens
    read = store_tokens(data.store, kind, positions=training.model.position_features)
    shown = [data.ids[i] for i in test]
    if row == "retrieval":
        texts = [data.texts[i] for i in train]
        return retrieved_reports(texts, tokens_of(read, [data.ids[i] for i in train]), tokens_of(read, shown))
    if row == "shuffled":
        shown = _other_patients(data, test)
    writer = ReportWriter(_trained(row, training, data, out), with_vision_tower=False)
    tokens = tokens_of(read, shown)
    return list(writer.write_all(tokens, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens))


def _trained(row: str, training: ReportRecipe, data: ReportData, out: Path) -> Path:
    """The model folder of a row, trained where it is not there yet; `shuffled` is the adapter."""
    name = "adapter" if row == "shuffled" else row
    changed = replace(
        training,
        output_dir=str(out / name),
        data=replace(
            training.data,
            reports=str(data.reports),
            store=str(data.store.folder),
            scans=None,
            shuffle_features=row == "text_only",
        ),
        model=replace(training.model, feature_tokens="cls" if row == "cls_only" else training.model.feature_tokens),
    )
    for stage in (1, 2):
        if not (stage_folder(changed, stage) / "model" / "config.json").is_file():
            folder = train_reports(changed, stage=stage, command=f"voxelfm benchmark, row {name}")
            if not (folder / "config.json").is_file():
                raise VoxelFMError(f"the training of {name} was asked to stop: run the same command again to go on")
    return stage_folder(changed, 2) / "model"


def _other_patients(data: ReportData, test: np.ndarray) -> list[str]:
    """For every test scan one of another patient: the next ones in a random order."""
    order = np.random.default_rng(0).permutation(test)
    place = {row: index for index, row in enumerate(order)}
    shown = []
    for row in test:
        turn = 1
        while data.patients[order[(place[row] + turn) % len(order)]] == data.patients[row] and turn < len(order):
            turn += 1
        shown.append(data.ids[order[(place[row] + turn) % len(order)]])
    return shown


def _score(
    title: str,
    settings: ReportBenchmarkSettings,
    written: Mapping[str, LabelledReports],
    data: ReportData,
    out: Path,
    name: str | Path,
) -> Outcome:
    """results.csv, comparisons.csv, results.md, examples.md, the adapter's card and the table for the terminal."""
    rows: list[dict[str, Any]] = []
    visible = _visible(out)
    for encoder, reports in written.items():
        scores = score_reports(reports, visible=visible, replicates=settings.replicates)
        for (target, metric), estimate in scores.items():
            rows.append(
                {"encoder": encoder, "task": TASK, "target": target, "metric": metric, "value": estimate.value,
                 "low": estimate.low, "high": estimate.high, "n": estimate.n, "fraction": 1.0, "seeds": 1,
                 "train_rows": len(data.rows("train")), "patients": estimate.patients, "note": estimate.note}
            )  # fmt: skip
    if not data.patients_known:
        forget_patients(rows)
    comparisons = comparison_rows(written, visible, replicates=settings.replicates)
    write_csv(out / "results.csv", rows)
    write_csv(out / "comparisons.csv", comparisons)
    page = results_page(
        title,
        rows,
        comparisons,
        written,
        visible,
        synthetic=data.synthetic,
        train_rows=len(data.rows("train")),
        replicates=settings.replicates,
    )
    with written_file(out / "results.md") as path:
        path.write_text(page, encoding="utf-8")
    with written_file(out / "examples.md") as path:
        path.write_text(examples_page(written, [data.ids[i] for i in data.rows("test")[:_EXAMPLES]]), encoding="utf-8")
    model = out / "adapter" / "stage2" / "model"
    if "adapter" in written and model.is_dir():
        test = data.rows("test")[:EXAMPLES]
        write_report_card(
            model,
            title=title,
            rows=rows,
            table=page.partition("\n\n")[2],
            examples=[
                (data.ids[row], on_one_line(data.texts[row]), on_one_line(written["adapter"].written[index]))
                for index, row in enumerate(test)
            ],
            synthetic=data.synthetic,
            command=f"voxelfm benchmark {Path(name).name} --out OUT",
        )
    return Outcome([terminal_table(rows)], [])


def _visible(out: Path) -> list[str]:
    """Findings that a probe sees in the features of the validation scans; none before there is a probe."""
    path = out / _VISIBLE_FILE
    seen = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [finding for finding, area in seen.items() if area >= VISIBLE_FROM]
