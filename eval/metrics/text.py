"""Scores of written text against a reference: BLEU, ROUGE-L, METEOR without stems and synonyms; offline, no models.

Words are lower-case runs of letters and digits. They reward wording, and say little about whether findings are right.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

MAX_ORDER = 4
_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return _WORD.findall(text.lower())


def bleu_counts(written: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """What BLEU needs of one pair: matches and candidates for orders 1 to 4, words written, words of the reference."""
    matches, candidates = [], []
    for order in range(1, MAX_ORDER + 1):
        mine, theirs = _ngrams(written, order), _ngrams(reference, order)
        matches.append(sum((mine & theirs).values()))
        candidates.append(sum(mine.values()))
    return np.array([*matches, *candidates, len(written), len(reference)], dtype=float)


def corpus_bleu(counts: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """BLEU-4 of a corpus (Papineni et al. 2002): one score for all pairs, 0 where an order has no match.

    Args:
        counts: (n, 10) from `bleu_counts`.
        weights: (..., n) how often each pair counts.

    Returns:
        (...) from 0 to 1.
    """
    total = weights @ counts
    matches, candidates = total[..., :MAX_ORDER], total[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference = total[..., -2], total[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / candidates).mean(-1))
        brevity = np.exp(np.minimum(0, 1 - reference / length))
    return np.nan_to_num(precision * brevity)


def rouge_l(written: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words (Lin 2004)."""
    if not written or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in written:
        previous = 0
        for index, other in enumerate(reference, start=1):
            above = row[index]
            row[index] = previous + 1 if word == other else max(above, row[index - 1])
            previous = above
    return 2 * row[-1] / (len(written) + len(reference))


def meteor(written: Sequence[str], reference: Sequence[str]) -> float:
    """METEOR (Banerjee and Lavie 2005, alpha 0.9, beta 3, gamma 0.5) of exact words only."""
    left = list(enumerate(reference))
    pairs = []
    for place in range(len(written) - 1, -1, -1):  # from the end, as the common implementation pairs them
        for index in range(len(left) - 1, -1, -1):
            if left[index][1] == written[place]:
                pairs.append((place, left.pop(index)[0]))
                break
    if not pairs:
        return 0.0
    pairs.sort()
    precision, recall = len(pairs) / len(written), len(pairs) / len(reference)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    chunks = 1 + sum(b != (a[0] + 1, a[1] + 1) for a, b in zip(pairs, pairs[1:], strict=False))
    return mean * (1 - 0.5 * math.pow(chunks / len(pairs), 3))


def _ngrams(sequence: Sequence[str], order: int) -> Counter:
    return Counter(tuple(sequence[i : i + order]) for i in range(len(sequence) - order + 1))
