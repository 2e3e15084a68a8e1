"""Instance retrieval: for a query scan, is one with the same finding found among scans without it?

Pools hold 1 positive and 99 negatives. Which 99 is not drawn but averaged over: a random pool of m out of M eligible
negatives, A of them more similar than the positive, puts hypergeometric(M, A, m) of them ahead. So there is no Monte
Carlo noise: every pair of query and positive is one value. Pairs that share a scan are not independent; intervals
resample patients, whose scans enter and leave as queries and as positives at once. A scan's own patient and study are
never in its pools; equal similarities count as a random order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Unpack

import numpy as np

from voxelfm_hf.eval.labels import LabelTable, binary_target, number_target
from voxelfm_hf.eval.metrics.measure import Measure
from voxelfm_hf.eval.metrics.ranks import ratio
from voxelfm_hf.eval.metrics.retrieval import average_precision, precision_measure, recall_measure
from voxelfm_hf.eval.metrics.scoring import metric_report, per_row_report
from voxelfm_hf.eval.tasks.data import TaskData, open_data
from voxelfm_hf.eval.tasks.fitting import FitOptions
from voxelfm_hf.eval.tasks.kept import Judged, Tables, kept_predictions, lists, row_mean_over_seeds, row_names
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes.errors import LabelError

HEADLINES = ("recall_at_5",)
HAS_MACRO = False
POOL_NEGATIVES = 99
RECALLS_AT = (1, 5, 10)
NEIGHBOURS_KEPT = 10


def read(
    store: FeatureStore,
    labels: LabelTable,
    *,
    targets: Sequence[str],
    alike: Mapping[str, float] | None = None,
    **options,
) -> TaskData:
    """Labelled rows of one or more findings.

    Args:
        store: The feature store.
        labels: The label table.
        targets: Columns with 0 and 1, empty where unknown.
        alike: Numeric column -> largest difference between a query and its negatives (spacing, slice thickness), so
            that acquisition cannot give them away.
        **options: Options of `open_data`.
    """
    data, labels = open_data(store, labels, task="retrieval", **options)
    findings = np.stack([binary_target(labels, target) for target in targets], axis=1)
    limits = {name: (number_target(labels, name), float(limit)) for name, limit in (alike or {}).items()}
    return replace(data, targets=findings, names=list(targets), options={**data.options, "alike": limits})


def fit(data: TaskData, **options: Unpack[FitOptions]) -> None:
    """Retrieval fits nothing: features are compared as they are."""
    if options.get("head"):
        raise LabelError(f"retrieval has no head, got {options['head']}")


def predict(probe: None, data: TaskData, rows: np.ndarray) -> np.ndarray:
    """Cosine similarities (rows, rows) between the scans of some rows."""
    if data.features.cls is None:
        raise ValueError("retrieval needs CLS vectors")
    vectors = data.features.cls[rows].double().numpy()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return vectors @ vectors.T


def evaluate(
    predictions: np.ndarray,
    data: TaskData,
    rows: np.ndarray,
    *,
    k: Sequence[int] = RECALLS_AT,
    negatives: int = POOL_NEGATIVES,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """A report for each finding: Recall@k in pools, with what a random order gives, and mAP over all eligible scans.

    Args:
        predictions: (rows, rows) similarities.
        data: The task data.
        rows: The rows they belong to.
        k: Lengths of the list.
        negatives: Negatives in a pool; fewer, with a note, where a query has fewer.
        replicates: Bootstrap replicates.
        seed: Of the bootstrap.
    """
    reports = {}
    for i, name in enumerate(data.names):
        found = query_values(predictions, data, rows, target=i, k=k, negatives=negatives)
        settings = {
            "patients": data.groups[rows][found.queries],
            "subgroups": data.levels(rows[found.queries]),
            "replicates": replicates,
            "seed": seed,
        }
        measures = {f"recall_at_{size}": pair_measure(size, column) for column, size in enumerate(k)}
        report = metric_report(measures, found.pairs, np.arange(len(found.queries)), **settings)
        lists = per_row_report({"map": found.precisions}, **settings)
        report = {
            **report,
            "map": lists["map"],
            "estimates": {**report["estimates"], **lists["estimates"]},
            **({"subgroups": report["subgroups"] + lists["subgroups"]} if "subgroups" in report else {}),
        }
        pools = found.pools
        report["negatives"] = negatives
        for size in k:
            chances = np.minimum(1.0, size / (pools[pools > 0] + 1))
            chance = float(chances.mean()) if len(chances) else float("nan")
            report["estimates"][f"recall_at_{size}"]["chance"] = chance
        short = int((pools < negatives).sum())
        if short:
            report["note"] = f"{short} of {len(found.queries)} queries have fewer than {negatives} negatives"
        reports[name] = report
    return reports


def counts(data: TaskData, rows: np.ndarray) -> dict[str, str]:
    """How many of some rows have each finding, by heading."""
    return data.positives(rows)


def columns(predictions: np.ndarray, data: TaskData, rows: np.ndarray, *, probe: None = None) -> list[dict[str, Any]]:
    """A row a query: pairs_at_K (recall for every query as the positive, -1 where they may not meet), map, pool,
    neighbours (ids, most similar first); nothing of a finding without a query.
    """
    kept = []
    others = np.where(data.groups[rows][:, None] == data.groups[rows][None], -np.inf, predictions)
    nearest = rows[np.argsort(-others, axis=1, kind="stable")[:, :NEIGHBOURS_KEPT]]
    for number, name in enumerate(data.names):
        found = query_values(predictions, data, rows, target=number)
        if len(found.queries):
            kept.append(
                {
                    **row_names(data, rows[found.queries]),
                    "target": name,
                    **{f"pairs_at_{k}": lists(found.pairs[:, :, column]) for column, k in enumerate(RECALLS_AT)},
                    "map": found.precisions,
                    "pool": found.pools,
                    "neighbours": [[data.ids[row] for row in nearest[query]] for query in found.queries],
                }
            )
    return kept


def judge(tables: Tables, options: Mapping[str, Any]) -> Judged:
    """Measures of (positions, pairs or precisions) of kept queries; pairs are averaged over seeds."""
    predictions = {f"recall_at_{k}": kept_predictions(tables, f"pairs_at_{k}").mean(1) for k in RECALLS_AT}
    predictions["map"] = kept_predictions(tables, "map")
    measures = {f"recall_at_{k}": _positions_first(pair_measure(k, 0)) for k in RECALLS_AT}
    by_row = row_mean_over_seeds(precision_measure())
    measures["map"] = replace(
        by_row,
        function=lambda positions, values, weights: by_row.function(values, weights=weights),
        why_undefined=lambda positions, values: by_row.why_undefined(values),
    )
    return Judged((np.arange(len(predictions["map"])),), predictions, measures, pairs_of_rows=True)


def main_metric(options: Mapping[str, Any]) -> str:
    """Recall among the first five."""
    return "recall_at_5"


def ceiling(data: TaskData) -> np.ndarray:
    """(n, k) features that know the answer: cosine 1 within a class and -1 across."""
    return 2 * data.targets - 1


def _positions_first(measure: Measure) -> Measure:
    """A measure of (pairs, positions) as one of (positions, pairs (q, q))."""
    return replace(
        measure,
        function=lambda positions, pairs, weights: measure.function(pairs[..., None], positions, weights=weights),
        why_undefined=lambda positions, pairs: measure.why_undefined(pairs[..., None], positions),
    )


@dataclass(frozen=True, eq=False)
class QueryValues:
    """What one finding's q queries found.

    Attributes:
        queries: (q,) positions among the rows.
        pairs: (q, q, len(k)) recalls of every query for every positive, -1 where they may not meet.
        pools: (q,) negatives in the pool of each query.
        precisions: (q,) average precision over all eligible scans, NaN without a negative.
    """

    queries: np.ndarray
    pairs: np.ndarray
    pools: np.ndarray
    precisions: np.ndarray


def query_values(
    predictions: np.ndarray,
    data: TaskData,
    rows: np.ndarray,
    *,
    target: int = 0,
    k: Sequence[int] = RECALLS_AT,
    negatives: int = POOL_NEGATIVES,
) -> QueryValues:
    """Recalls and average precisions of every query of one finding; arguments as in `evaluate`."""
    groups = data.groups[rows]
    allowed = groups[:, None] != groups[None]
    for values, limit in data.options["alike"].values():
        difference = np.abs(values[rows][:, None] - values[rows][None])
        allowed &= (difference <= limit) & np.isfinite(difference)
    labels = data.targets[rows, target]
    queries, against = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    pairs, pools = _pair_recalls(predictions, queries, against, groups, allowed, k=k, negatives=negatives)
    precisions = [
        _average_precision(predictions[q], labels, (groups != groups[q]) & (labels == 1), allowed[q]) for q in queries
    ]
    return QueryValues(queries, pairs, pools, np.array(precisions, dtype=float))


def pair_measure(size: int, column: int) -> Measure:
    """Recall@size as a measure of (pairs, positions of the queries), from one column of the pairs' last axis."""
    return replace(recall_measure(size), function=partial(_pair_mean, column=column), why_undefined=_why_no_pairs)


def _pair_recalls(
    similarities: np.ndarray,
    queries: np.ndarray,
    against: np.ndarray,
    groups: np.ndarray,
    allowed: np.ndarray,
    *,
    k: Sequence[int],
    negatives: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Recalls (queries, queries, k) of every query for every positive, -1 where they may not meet, and pool sizes."""
    pairs = np.full((len(queries), len(queries), len(k)), -1.0)
    pools = np.zeros(len(queries), dtype=int)
    mixed = np.isin(groups[queries], groups[against])
    for index, query in enumerate(queries):
        eligible = against[allowed[query, against]]
        pools[index] = min(negatives, len(eligible))
        others = groups[queries] != groups[query]
        # A positive whose own patient has negatives too gets pools without them.
        parts = [(np.flatnonzero(others & ~mixed), eligible)]
        parts += [
            (np.array([p]), eligible[groups[eligible] != groups[queries[p]]]) for p in np.flatnonzero(others & mixed)
        ]
        for positives, pool in parts:
            if len(positives) and len(pool):
                pairs[index, positives] = pool_recall(
                    similarities[query, queries[positives]], similarities[query, pool], k=k, negatives=negatives
                )
    return pairs, pools


def _pair_mean(pairs: np.ndarray, positions: np.ndarray, *, column: int, weights: np.ndarray) -> np.ndarray:
    """Mean over the pairs of query and positive that may meet, each as often as both its scans were drawn."""
    values = pairs[:, positions, column]
    usable = (values >= 0).astype(float)
    total = ((weights @ usable) * weights).sum(-1)
    return ratio(((weights @ (values * usable)) * weights).sum(-1), total)


def _why_no_pairs(pairs: np.ndarray, positions: np.ndarray) -> str:
    if len(pairs) and (pairs[:, positions] >= 0).any():
        return ""
    return "no two positives of different patients with a negative to tell them from"


def _average_precision(similarity: np.ndarray, labels: np.ndarray, positive: np.ndarray, allowed: np.ndarray) -> float:
    """Average precision of one query over all its positives and eligible negatives."""
    listed = positive | (allowed & (labels == 0))
    if not (listed & ~positive).any():
        return float("nan")
    return average_precision(similarity[listed], positive[listed])


def pool_recall(
    positives: np.ndarray, negatives_similarity: np.ndarray, *, k: Sequence[int], negatives: int = POOL_NEGATIVES
) -> np.ndarray:
    """Recall@k of one query for each of its positives, averaged over all pools of that many negatives.

    Args:
        positives: Similarities of the positives, each in a pool of its own.
        negatives_similarity: Similarities of all eligible negatives.
        k: Lengths of the list.
        negatives: Negatives in a pool; all of them when there are fewer.

    Returns:
        (positives, len(k)) recalls; NaN without a negative.
    """
    total = len(negatives_similarity)
    if total == 0:
        return np.full((len(positives), len(k)), np.nan)
    pool = min(negatives, total)
    ordered = np.sort(negatives_similarity)
    ahead = total - np.searchsorted(ordered, positives, side="right")
    tied = total - np.searchsorted(ordered, positives, side="left") - ahead
    # With t negatives tied, the positive is behind 0, 1, ... or t of them, each equally likely.
    return np.array(
        [
            [np.mean([_chance_of_fewer(total, a + j, pool, size) for j in range(t + 1)]) for size in k]
            for a, t in zip(ahead.tolist(), tied.tolist(), strict=True)
        ]
    ).reshape(len(positives), len(k))


@cache
def _chance_of_fewer(total: int, ahead: int, pool: int, k: int) -> float:
    """Chance that fewer than k of `ahead` marked items are among `pool` drawn from `total`."""
    first = max(0, pool - (total - ahead))
    ways = sum(
        math.comb(ahead, x) * math.comb(total - ahead, pool - x) for x in range(first, min(k - 1, ahead, pool) + 1)
    )
    return ways / math.comb(total, pool)
