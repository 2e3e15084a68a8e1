"""Every metric by its name: for reports of one value a row, tables and figures, which are given names."""

from voxelfm_hf.eval.metrics import binary, continuous, localization, multiclass, retrieval, segmentation, survival
from voxelfm_hf.eval.metrics.measure import Measure, by_name

_WITHOUT_NUMBER = {
    **multiclass.measures(),
    **binary.measures(),
    **continuous.measures(),
    **survival.measures(),
    **localization.measures(),
    **by_name((retrieval.precision_measure(),)),
}


def find_measure(name: str) -> Measure | None:
    """The measure of a name, also of one with a number or class in it (recall_at_5, dice_liver); None if unknown."""
    metric, _, number = name.partition("_at_")
    if metric == "recall" and number.isdigit():
        return retrieval.recall_measure(int(number))
    if metric == "auroc" and number:
        return survival.horizon_measure(float(number))
    return _WITHOUT_NUMBER.get(name) or segmentation.measure(name)


def metric_title(name: str) -> str:
    """A metric as a reader calls it."""
    found = find_measure(name)
    return found.title if found else name.replace("_", " ")


def is_error(name: str) -> bool:
    """Whether lower is better."""
    found = find_measure(name)
    return found is not None and not found.higher_is_better


def chance_of(name: str) -> float | None:
    """The value of a metric without any knowledge, where that is a constant."""
    found = find_measure(name)
    return found.chance if found else None
