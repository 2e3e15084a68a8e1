"""Errors of predicted points: mean Euclidean distance in mm and in units of the field of view."""

import datasets
import evaluate
import numpy as np

from voxelfm_hf.eval.metric_reports import per_row_report
from voxelfm_hf.eval.metrics.localization import point_errors_mm, point_errors_normalised

INPUTS = """
Args:
    predictions: n points (z, y, x) in mm.
    references: n points (z, y, x) in mm; NaN where not annotated.
    extent_mm: Field of view along z, y, x in mm, one for all or one a row; without it there is no normalised error.
    patients: n identifiers; the bootstrap draws patients. Without them every row is its own patient.
    subgroups: Column name -> n levels; every metric is repeated within each level.
    replicates: Bootstrap replicates of the 95 % intervals; 0, the default, gives no interval.
    seed: Seed of the bootstrap.

Returns:
    The mean of every metric by name, NaN where it is not defined; "estimates" with value, low, high, n and a note for
    each; "subgroups" when asked for.
"""


class CTLocalization(evaluate.Metric):
    """Errors of predicted points: mean Euclidean distance in mm and in units of the field of view."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64"), length=3),
                    "references": datasets.Sequence(datasets.Value("float64"), length=3),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        extent_mm=None,
        patients=None,
        subgroups=None,
        replicates=0,
        seed=0,
    ) -> dict:
        targets, points = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
        values = {"error_mm": point_errors_mm(targets, points)}
        if extent_mm is not None:
            values["error_normalised"] = point_errors_normalised(targets, points, extent_mm=extent_mm)
        return per_row_report(
            values,
            lower_is_better=tuple(values),
            patients=patients,
            subgroups=subgroups,
            replicates=replicates,
            seed=seed,
        )
