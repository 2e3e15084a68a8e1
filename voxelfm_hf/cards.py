"""Cards of what is released, from the templates in model_cards/: complete, or one sentence that names what is missing.

A card has no empty section and no number that is not finite; tables of scores come through `score_table`, which asks
for the n of every number, and every card that holds one names the command that makes it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from voxelfm_hf.markdown import table
from voxelfm_hf.volumes.errors import CardError

if TYPE_CHECKING:
    from huggingface_hub import CardData, EvalResult

PACKAGE = "voxelfm_hf.model_cards"
TAGS = ("medical", "computed-tomography", "radiology", "3d")
NO_LICENSE = "unknown"
# What the card of a report model says of its parts, before and after they are merged into one folder.
PARTS_NAMED = "Encoder and language model are named, not contained."
PARTS_CONTAINED = "Encoder and language model are contained, the LoRA adapter merged into the latter."
# Pipelines of the Hub, as far as it has one for a task.
PIPELINE_TAGS = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "localization": "keypoint-detection",
    "retrieval": "image-feature-extraction",
    "report": "image-text-to-text",
}


def backbone_card(*, eval_results: Sequence["EvalResult"] = (), benchmark: str = "", **values: Any) -> str:
    """The card of an encoder with the Hub's metadata header.

    Args:
        eval_results: For the header's `model-index`.
        benchmark: Markdown of a benchmark, with the command that makes it.
        **values: What model_cards/backbone.md asks for.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, "self-supervised", "voxelfm"],
        **_index(values.get("name"), eval_results),
    )
    given = {"evaluation_note": "", "curve_note": "", **values, "benchmark": benchmark}
    return render_card("backbone", header, given, optional=("benchmark", "evaluation_note", "curve_note"))


def probe_card(
    *,
    task: str,
    license: str | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
    eval_results: Sequence["EvalResult"] = (),
    **values: Any,
) -> str:
    """The card of a probe.

    Args:
        task: Its task family.
        license: Identifier of the Hub; None where nobody chose one.
        base_model: Hub id of the backbone; None for a local one.
        dataset_id: Hub id of the data.
        eval_results: For the header's `model-index`.
        **values: What model_cards/probe.md asks for.
    """
    return _card_of_scores(
        "probe",
        {"library_name": "transformers", "pipeline_tag": PIPELINE_TAGS.get(task), "tags": ["voxelfm-probe", task]},
        optional=("calibration", "pictures"),
        license=license,
        base_model=base_model,
        dataset_id=dataset_id,
        eval_results=eval_results,
        **values,
    )


def retrieval_card(**values: Any) -> str:
    """The card of the scores of a retrieval, which holds no weights; arguments as in `probe_card`, but no task.

    Args:
        **values: License, base model, data, results for the header, and what model_cards/retrieval.md asks for.
    """
    return _card_of_scores("retrieval", {"tags": ["retrieval"]}, optional=("alike",), **values)


def _card_of_scores(
    template: str,
    header: dict[str, Any],
    *,
    optional: Sequence[str],
    license: str | None = None,
    base_model: str | None = None,
    dataset_id: str | None = None,
    eval_results: Sequence["EvalResult"] = (),
    **values: Any,
) -> str:
    from huggingface_hub import ModelCardData

    header["tags"] = [*TAGS, "voxelfm", *header["tags"]]
    data = ModelCardData(
        license=license or NO_LICENSE,
        base_model=base_model,
        datasets=[dataset_id] if dataset_id else None,
        **header,
        **_index(values.get("name"), eval_results),
    )
    sections = ("license", "subgroups", "undefined", "data_citation", "notes", *optional)
    return render_card(template, data, {"license": license or "", **values}, optional=sections)


def tuned_backbone_card(
    *, mode: str, license: str | None = None, base_model: str | None = None, task: str, **values: Any
) -> str:
    """The card of a fine-tuned backbone, or of the LoRA adapters for one.

    Args:
        mode: How it was tuned; "lora" leaves adapters.
        license: Identifier of the Hub; None where nobody chose one.
        base_model: Hub id of the base model; None for a local one.
        task: Task family of the head it was trained with.
        **values: What model_cards/tuned_backbone.md asks for.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        license=license or NO_LICENSE,
        library_name="peft" if mode == "lora" else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=[*TAGS, "voxelfm", task],
        base_model=base_model,
    )
    given = {"license": license or "", "adapter": mode == "lora", "task": task, "notes": [], **values}
    return render_card("tuned_backbone", header, given, optional=("license", "notes"))


def report_adapter_card(
    *,
    license: str | None = None,
    base_models: Sequence[str] = (),
    eval_results: Sequence["EvalResult"] = (),
    **values: Any,
) -> str:
    """The card of a report generator or of its adapter.

    Args:
        license: Identifier of the Hub; None where nobody chose one.
        base_models: Hub ids of the backbone and the language model.
        eval_results: For the header's `model-index`.
        **values: What model_cards/report_adapter.md asks for.
    """
    from huggingface_hub import ModelCardData

    header = ModelCardData(
        license=license or NO_LICENSE,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS["report"],
        language="en",
        tags=[*TAGS, "voxelfm", "report-generation"],
        base_model=list(base_models) or None,
        **_index(values.get("name"), eval_results),
    )
    given = {"license": license or "", "examples": [], "notes": [], **values}
    return render_card("report_adapter", header, given, optional=("license", "examples", "notes"))


def benchmark_card(*, license: str | None = None, dataset_id: str | None = None, **values: Any) -> str:
    """The card of a benchmark's results.

    Args:
        license: Licence of the data, identifier of the Hub.
        dataset_id: Hub id of the data.
        **values: What model_cards/benchmark.md asks for.
    """
    from huggingface_hub import DatasetCardData

    header = DatasetCardData(
        license=license or NO_LICENSE,
        pretty_name=values.get("title"),
        tags=[*TAGS, "voxelfm", "benchmark"],
        source_datasets=[dataset_id] if dataset_id else None,
    )
    optional = ("pictures", "comparisons", "subgroups", "failures", "notes")
    return render_card("benchmark", header, values, optional=optional, of_data=True)


def render_card(
    kind: str, header: "CardData", values: Mapping[str, Any], *, optional: Collection[str] = (), of_data: bool = False
) -> str:
    """A template of model_cards/ filled in and checked.

    Args:
        kind: Name of the template.
        header: The metadata.
        values: What it asks for.
        optional: Names that may be empty; their sections are then left out by the template.
        of_data: Render as a data set's card.

    Raises:
        CardError: a value is missing, empty or not finite, or a section would be empty.
    """
    from huggingface_hub import DatasetCard, ModelCard
    from jinja2 import Environment, StrictUndefined, UndefinedError, meta

    from voxelfm_hf.release.checks import empty_sections

    # Templates are the package's own; values are data and are rendered once, never as templates, so that a sandbox has
    # nothing to hold. They are not escaped as HTML: a card is Markdown, which the Hub sanitises, and readers of the
    # file would find "&lt;" in it.
    template = resources.files(PACKAGE).joinpath(f"{kind}.md").read_text(encoding="utf-8")
    strict = Environment(undefined=StrictUndefined)
    wanted = meta.find_undeclared_variables(strict.parse(template)) - {"card_data"}
    title = kind.replace("_", " ")
    missing = sorted(name for name in wanted if name not in values or name not in optional and _is_empty(values[name]))
    if missing:
        raise CardError(f"the {title} card lacks {', '.join(missing)}: give what model_cards/{kind}.md asks for")
    strange = sorted(name for name in wanted if _holds_nonfinite(values[name]))
    if strange:
        raise CardError(f"the {title} card holds a number that is not finite in {', '.join(strange)}: say why instead")
    names = [values.get("name"), values.get("title"), dict(values.get("description") or {}).get("name")]
    if any(isinstance(name, str) and len(name.splitlines()) > 1 for name in names):
        raise CardError(f"the name on the {title} card has several lines, which could pass for sections: write one")
    try:
        strict.from_string(template).render(card_data="", **values)
    except UndefinedError as error:
        raise CardError(f"the {title} card lacks a value: {error.message}") from None
    card_class: Any = DatasetCard if of_data else ModelCard
    card = card_class.from_template(header, template_str=template, **dict(values))
    empty = empty_sections(card.text)
    if empty:
        raise CardError(f"the {title} card has nothing to say under {', '.join(empty)}: fill it in or leave it out")
    return str(card)


def score_table(
    rows: Sequence[Mapping[str, Any]],
    *,
    columns: Sequence[str] = ("target", "metric"),
    keep_undefined: bool = False,
) -> str:
    """Markdown of scores with 95 % intervals, n and the number of patients where it is known; empty without a score.

    Args:
        rows: With `columns`, value, low, high, n, and perhaps patients.
        columns: What stands before the score.
        keep_undefined: Keep rows whose score is undefined, and say so.

    Raises:
        CardError: a score without its n.
    """
    kept = [row for row in rows if keep_undefined or _finite(row.get("value"))]
    with_patients = any(row.get("patients") is not None for row in kept)
    body = []
    for row in kept:
        if row.get("n") is None:
            raise CardError(f"the {row.get('metric')} of {row.get('target')} has no n: a score says what it rests on")
        ends = f"{number(row['low'])} to {number(row['high'])}" if _finite(row.get("low")) else "none"
        patients = "" if row.get("patients") is None else str(row["patients"])
        value = number(row["value"]) if _finite(row.get("value")) else "not defined"
        body.append([*(row[name] for name in columns), value, ends, row["n"], *([patients] if with_patients else [])])
    header = (*columns, "value", "95 % interval", "n", *(["patients"] if with_patients else []))
    return "\n".join(table(header, body)) if kept else ""


def number(value: float) -> str:
    """A score as text: three decimals below 10, else four significant digits."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _index(name: Any, eval_results: Sequence["EvalResult"]) -> dict[str, Any]:
    """The fields of a header with results; the Hub wants the model's name beside them."""
    return {"model_name": str(name), "eval_results": list(eval_results)} if eval_results else {}


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _holds_nonfinite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_nonfinite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_nonfinite(item) for item in value)
    return isinstance(value, float) and not math.isfinite(value)
