"""Overlap of label maps: Dice and, when asked for, HD95 and surface Dice, of each class and their mean."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.metric_reports import per_row_report
from voxelfm_hf.eval.segmentation_scores import segmentation_scores

INPUTS = """
Args:
    predictions: n label maps (D, H, W) as nested lists or arrays; their sizes may differ from row to row.
    references: n label maps; negative voxels are not annotated and left out.
    class_names: Names of the classes 0, 1, ...; the first is the background and is not scored.
    spacing: (z, y, x) in mm, one for all or one a row; needed for the surface metrics, left out without it.
    tolerance_mm: Tolerance of the surface Dice.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The mean of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTSegmentation(evaluate.Metric):
    """Overlap of label maps: Dice and, when asked for, HD95 and surface Dice, of each class and their mean."""

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Sequence(datasets.Value("int32"))))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(
        self,
        predictions,
        references,
        class_names,
        spacing=None,
        tolerance_mm=2.0,
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        n = len(references)
        spacings = [None] * n if spacing is None else np.broadcast_to(np.asarray(spacing, dtype=float), (n, 3))
        rows = [
            segmentation_scores(_volume(p), _volume(r), class_names=class_names, spacing=s, tolerance_mm=tolerance_mm)
            for p, r, s in zip(predictions, references, spacings, strict=True)
        ]
        values = {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}
        return per_row_report(
            values,
            lower_is_better=[name for name in values if name.startswith("hd95")],
            patients=patients,
            subgroups=subgroups,
            replicates=replicates,
            seed=seed,
        )


def _volume(nested) -> np.ndarray:
    """Nested lists, or the object arrays that the cache gives back, as one (D, H, W) array."""
    return np.array([[np.asarray(line) for line in plane] for plane in nested])
