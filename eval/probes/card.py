"""The card of a fitted probe: what it is, what it was fitted on, how well it does and on whom, how to load it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from voxelfm_hf.card_results import model_index
from voxelfm_hf.cards import number, probe_card, retrieval_card, score_table
from voxelfm_hf.eval.metrics.catalogue import metric_title
from voxelfm_hf.eval.tasks import load_task
from voxelfm_hf.eval.tasks.answer import output_names
from voxelfm_hf.eval.tasks.data import TaskData
from voxelfm_hf.eval.tasks.fitting import said_extents
from voxelfm_hf.hub import EMBEDDED
from voxelfm_hf.markdown import cell, table
from voxelfm_hf.modeling.configuration_voxelfm_probe import VoxelFMProbeConfig
from voxelfm_hf.modeling.modeling_voxelfm_probe import VoxelFMProbe
from voxelfm_hf.release.folder import PLACEHOLDER
from voxelfm_hf.training.probe.settings import DEFAULT_SETTINGS

# What scores without a command were made by, here.
FIT = "run.fit_and_evaluate"
SCORES_HOLD = (
    "hold for scans, labels and a mix of findings like those of the test rows, and may be lower at other hospitals and "
    "scanners."
)
# What a setting of no value stands for.
UNSET = {"batch_size": "all rows at once", "window": "whole scans"}


@dataclass(frozen=True)
class ProbeFacts:
    """What only the person who fits a probe can say; everything may stay empty.

    Args:
        name: Title of the card.
        about: What scans and labels are and where they come from, in a sentence or two.
        dataset: Name of the data set.
        dataset_id: Its Hub id, "user/name".
        license: Licence of the probe, identifier of the Hub.
        citation: Of the data.
        command: What was typed to fit it.
    """

    name: str = ""
    about: str = ""
    dataset: str = ""
    dataset_id: str | None = None
    license: str | None = None
    citation: str = ""
    command: str = ""


def write_probe_card(
    probe: VoxelFMProbe,
    reports: Mapping[str, Mapping[str, Any]],
    data: TaskData,
    *,
    pictures: Mapping[str, str] | None = None,
    facts: ProbeFacts | None = None,
) -> str:
    """The card as Markdown with the Hub's metadata header.

    Args:
        probe: The probe.
        reports: By target, from the task's `evaluate`.
        data: The task data.
        pictures: File name -> caption.
        facts: What its author says.
    """
    config, facts = probe.config, facts or ProbeFacts()
    fit = config.fit or {}
    tuning = fit.get("fine_tuning") or {}
    base = _base(config.base_model_name_or_path)
    targets = ", ".join(data.names)
    return probe_card(
        **_data_and_scores(reports, data, facts),
        task=data.task,
        base_model=base if "/" in base else None,
        name=facts.name or f"VoxelFM probe: {data.task} of {targets}",
        summary=f"{_what(config, tuning, base)} for {data.task}: {cell(targets)}.",
        predict_command=predict_command(config, PLACEHOLDER),
        features=_features(config),
        answer=load_task(data.task).ANSWER,
        base=base,
        base_hash=config.base_model_hash or "not recorded",
        limits=_limits(data),
        notes=[cell(note) for note in (*(fit.get("notes") or ()), *(tuning.get("notes") or ()))],
        fit=_fit(config, tuning),
        settings=_settings(config, fit),
        cost=_cost(fit),
        evaluation=_evaluation(facts, data, made_by="finetune.finetune_and_save" if tuning else FIT),
        pictures=dict(pictures or {}),
        calibration=_calibration(probe, data),
    )


def write_retrieval_card(
    reports: Mapping[str, Mapping[str, Any]], data: TaskData, *, facts: ProbeFacts | None = None
) -> str:
    """The card of the scores of a retrieval, for which nothing is fitted; arguments as in `write_probe_card`."""
    facts = facts or ProbeFacts()
    base = _base(data.run.get("model"))
    targets = ", ".join(data.names)
    short = [f"{target}: {report['note']}" for target, report in reports.items() if report.get("note")]
    return retrieval_card(
        **_data_and_scores(reports, data, facts, columns=("target", "metric", "chance")),
        base_model=base if "/" in base else None,
        name=facts.name or f"VoxelFM retrieval of {targets}",
        summary=f"How well CLS vectors of `{base}` find scans with the same finding: {cell(targets)}.",
        base=base,
        base_hash=data.run.get("weight_hash") or "not recorded",
        limits=f"Scores {SCORES_HOLD}",
        negatives=next(iter(reports.values()))["negatives"],
        alike=", ".join(f"{cell(name)} ({limit:g})" for name, (_, limit) in data.options["alike"].items()),
        notes=[cell(note) for note in (*data.notes, *short)],
        evaluation=_evaluation(facts, data, made_by=FIT),
    )


def predict_command(config: VoxelFMProbeConfig, probe: str | Path, *, model: str | Path | None = None) -> str:
    """What to type to ask a probe about a scan.

    Args:
        config: Of the probe.
        probe: Its folder or repository.
        model: Folder of its backbone; by default a word that stands for it, where `config` names no model of the Hub.
    """
    base = str(config.base_model_name_or_path or "")
    if model is None and "/" not in base and base != EMBEDDED:
        model = "FOLDER_OF_THE_BACKBONE"
    words = ["voxelfm", "predict", "SCAN", "--probe", str(probe)]
    words += [] if model is None else ["--model", str(model)]
    words += ["--regions", "CSV"] if (config.processor or {}).get("region_size") else []
    return shlex.join(words)


def score_rows(reports: Mapping[str, Mapping[str, Any]], *, task: str) -> list[dict[str, Any]]:
    """Every estimate of the reports as a row with task, target, metric, value, low, high, n, note, patients."""
    return [
        {"task": task, "target": target, "metric": metric, **estimate}
        for target, report in reports.items()
        for metric, estimate in report["estimates"].items()
    ]


def _data_and_scores(
    reports: Mapping[str, Mapping[str, Any]],
    data: TaskData,
    facts: ProbeFacts,
    *,
    columns: Sequence[str] = ("target", "metric"),
) -> dict[str, Any]:
    """What every card says: of the data, the scores on its test rows and the author."""
    module = load_task(data.task)
    rows = score_rows(reports, task=data.task)
    headlines = [row for row in rows if row["metric"] in module.HEADLINES]
    counts = {split: module.counts(data, data.rows(split)) for split in ("train", "val", "test")}
    patients = {split: data.patients(split) for split in counts}
    return {
        "license": facts.license,
        "dataset_id": facts.dataset_id,
        "eval_results": model_index(
            headlines, dataset_name=facts.dataset or "unnamed data", dataset_id=facts.dataset_id
        ),
        "data": facts.about or "The author has not said what the scans and labels are and where they come from.",
        "count_names": [cell(name) for name in counts["train"]],
        "counts": {
            split: [len(data.rows(split)), "unknown" if patients[split] is None else patients[split], *found.values()]
            for split, found in counts.items()
        },
        "split_rule": _split_rule(data),
        "scores": _scores(rows, columns),
        "undefined": [
            f"{row['metric']} of {cell(row['target'])}: {cell(row['note'] or 'no value')} (n {row['n']})"
            for row in rows
            if row["value"] is None
        ],
        "subgroups": _subgroups(reports, module.HEADLINES),
        "data_citation": facts.citation,
    }


def _base(name: Any) -> str:
    return str(name or "an unnamed backbone")


def _scores(rows: list[dict[str, Any]], columns: Sequence[str]) -> str:
    named = [{"chance": "–", **row, "metric": metric_title(row["metric"])} for row in rows]
    for row in named:
        if isinstance(row["chance"], float):
            row["chance"] = number(row["chance"])
    return score_table(named, columns=columns) or "No score is defined on the test rows."


def _what(config: Any, tuning: Mapping[str, Any], base: str) -> str:
    if not tuning:
        return f"A {config.head} probe on frozen features of `{base}`"
    backbone = "LoRA adapters for" if tuning["mode"] == "lora" else f"a fine-tuned copy ({tuning['mode']}) of"
    return f"A {config.head} head with {backbone} `{tuning['base'] or 'an unnamed backbone'}`, trained together,"


def _fit(config: Any, tuning: Mapping[str, Any]) -> str:
    head = f"A {config.head} head on {'patch grids' if config.uses_patches else 'CLS vectors'}"
    if not tuning:
        return f"{head}; the best epoch was chosen on the validation rows."
    return (
        f"{head}, fitted on frozen features and from there trained together with the backbone (mode {tuning['mode']}); "
        f"the best epoch (of {tuning['epochs']}) was chosen on the validation rows."
    )


def _split_rule(data: TaskData) -> str:
    if data.patient_column is None:
        rule = (
            "The label table does not tell patients apart: rows of one patient may be in different splits, those of "
            "the label table or drawn ones where it names none."
        )
    else:
        rule = (
            "All rows of a patient are in one split: that of the label table, or one drawn by patient where it names "
            "none."
        )
    return f"{rule} Nothing was chosen on the test rows."


def _evaluation(facts: ProbeFacts, data: TaskData, *, made_by: str) -> str:
    made = f"`{facts.command or f'voxelfm_hf.eval.probes.{made_by}'}`"
    where = f" of {facts.dataset}" if facts.dataset else ""
    resampled = "rows or studies" if data.patient_column is None else "patients"
    return (
        f"Scored once on the test rows{where} by {made}, {date.today().isoformat()}. Intervals hold 95 % and come from "
        f"a bootstrap that resamples {resampled}; `results.json` holds the same numbers."
    )


def _features(config: Any) -> str:
    if config.family.is_map:
        return "patches=patches, size=(depth, height, width)"
    return "patches=patches" if config.uses_patches else "cls=cls"


def _limits(data: TaskData) -> str:
    scans, patients = len(data.rows("train")), data.patients("train")
    of = "an unknown number of" if patients is None else patients
    return f"It has learned from {scans} scans or regions of {of} patients; scores {SCORES_HOLD}"


def _settings(config: Any, fit: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a fit that had a part in its task."""
    tuning = fit.get("fine_tuning")
    if tuning:
        named, best = _tuning_settings(config, tuning), tuning["best_epoch"]
    else:
        named = fit.get("settings") or {}
        best = ", ".join(f"{name} {epoch}" for name, epoch in (fit.get("best_epoch") or {}).items())
    found = {"head": config.head, "hidden_width": config.head_hidden_size or "none", "seed": fit.get("seed"), **named}
    found["best_epoch"] = best
    if (config.processor or {}).get("region_size") and fit.get("field_of_view_mm"):
        found["cubes of the training rows"] = said_extents(*fit["field_of_view_mm"])
    idle = set() if config.family.is_map else {"window", "dice"}
    if not (config.family.is_map or config.family.balanced):
        idle.add("balance")
    return {
        name.replace("_", " "): cell(UNSET.get(name, "not recorded") if value is None else value)
        for name, value in found.items()
        if value != "" and name not in idle
    }


def _tuning_settings(config: Any, tuning: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a fine-tuning that had a part in its mode and task."""
    settings = dict(tuning["settings"])
    adapters = dict(settings.pop("lora"))
    if tuning["mode"] == "lora":
        settings = {name: value for name, value in settings.items() if name not in ("learning_rate", "layer_decay")}
        adapters["layers"] = ", ".join(adapters["layers"])
        settings |= {f"lora_{name}": value for name, value in adapters.items()}
    if config.family.risk_sets:
        settings["batch_size"] = None
    if settings["noise"] is None:
        settings["noise"] = DEFAULT_SETTINGS[config.head].noise
    return {"mode": tuning["mode"], "trainable_parameters": f"{tuning['trainable_parameters']:,}", **settings}


def _cost(fit: Mapping[str, Any]) -> str:
    tuning = fit.get("fine_tuning")
    if tuning:
        return (
            f"training took {tuning['seconds']:.0f} s and {tuning['peak_memory_mb']} MB at most of a process "
            f"({tuning['processes']} on {tuning['machine']}); preparing the scans, the frozen probe and the "
            "predictions are not included; energy was not measured."
        )
    if fit.get("seconds") is None:
        return "not recorded."
    return (
        f"the fit and its predictions took {fit['seconds']:.0f} s on {fit['machine']}, embedding the scans not "
        "included; energy was not measured."
    )


def _calibration(probe: VoxelFMProbe, data: TaskData) -> str:
    config = probe.config
    names = list(output_names(probe).values())
    if config.temperature and config.is_single_label:
        return f"One temperature for all classes: {number(config.temperature[0])}."
    if config.temperature:
        thresholds = config.threshold or [0.5] * len(names)
        rows = zip(names, map(number, config.temperature), map(number, thresholds), strict=True)
        return "\n".join(table(("label", "temperature", "threshold"), rows))
    if config.interval_half_width:
        header = ("target", f"half width of the {100 * (config.interval_level or 0):g} % prediction interval")
        units = config.target_unit or [""] * len(names)
        widths = (f"{number(width)} {unit}" for width, unit in zip(config.interval_half_width, units, strict=True))
        return "\n".join(table(header, zip(names, widths, strict=True)))
    return ""


def _subgroups(reports: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]) -> str:
    rows = [
        {**row, "target": target, "metric": metric_title(row["metric"])}
        for target, report in reports.items()
        for row in report.get("subgroups") or ()
        if row["metric"] in metrics
    ]
    return score_table(rows, columns=("target", "column", "level", "metric"), keep_undefined=True)
