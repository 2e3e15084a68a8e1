"""Label chest CT reports with 18 findings by rules that see negation, uncertainty and history.

The phrases are in `rules.py`, what a sentence asserts about them in `voxelfm_hf/data/reports/negation.py`.
Findings that are doubtful ("possible", "cannot be excluded") count as present; findings that are only history, or only
asked about ("evaluate for", "rule out", a list of diagnoses in brackets), do not. Indication, technique, comparison and
recommendation sections are not read. Measure it on annotated reports with

    python -m voxelfm_hf.eval.labeller REPORTS.csv

The labels are those of this labeller: F1 scores made with them do not compare with scores made by another one.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from voxelfm_hf.data.reports.negation import Span, assertion, clauses
from voxelfm_hf.data.reports.phrases import phrase_pattern
from voxelfm_hf.data.reports.text import split_sections, split_sentences
from voxelfm_hf.eval.labeller.rules import RULES, Cue

FINDINGS: tuple[str, ...] = tuple(RULES)
SECTIONS_NOT_READ = ("indication", "technique", "comparison", "recommendation")


def label_report(text: str) -> dict[str, int]:
    """Label one report.

    Args:
        text: A whole report, with or without section headings.

    Returns:
        1 or 0 for each of `FINDINGS`, in that order.

    Example:
        >>> label_report("No pleural effusion. Small hiatal hernia.")["Hiatal hernia"]
        1
    """
    return {finding: int(bool(evidence)) for finding, evidence in label_report_with_evidence(text).items()}


def label_report_with_evidence(text: str) -> dict[str, list[str]]:
    """Label one report and say because of which sentences.

    Args:
        text: A whole report, with or without section headings.

    Returns:
        For each of `FINDINGS` the sentences that state it, in order; an empty list where the finding is absent.
    """
    evidence: dict[str, list[str]] = {finding: [] for finding in FINDINGS}
    for section in split_sections(text):
        if section.title in SECTIONS_NOT_READ:
            continue
        for sentence in split_sentences(section.text):
            for finding in _findings_in(sentence):
                evidence[finding].append(sentence)
    return evidence


class _CompiledCue(NamedTuple):
    words: re.Pattern[str]
    near: re.Pattern[str] | None
    closer_than: re.Pattern[str] | None
    never: re.Pattern[str] | None
    ignore: re.Pattern[str] | None

    @classmethod
    def compile(cls, cue: Cue) -> "_CompiledCue":
        fields = (cue.near, cue.closer_than, cue.never, cue.ignore)
        return cls(phrase_pattern(cue.words), *(phrase_pattern(phrases) if phrases else None for phrases in fields))

    def states(self, sentence: str) -> bool:
        """Whether the sentence states the finding by this cue."""
        if not self.words.search(sentence):
            return False
        text = self.ignore.sub(lambda match: "_" * len(match[0]), sentence) if self.ignore else sentence
        for clause in clauses(sentence):
            if self.never and self.never.search(text, *clause):
                continue
            for match in self.words.finditer(text, *clause):
                mention = Span(*match.span())
                if self._is_near(text, clause, mention) and assertion(sentence, *mention) in ("present", "uncertain"):
                    return True
        return False

    def _is_near(self, text: str, clause: Span, mention: Span) -> bool:
        if self.near is None:
            return True
        places = [Span(*match.span()) for match in self.near.finditer(text, *clause)]
        if not places:
            return False
        distance = min(_distance(place, mention) for place in places)
        rivals = self.closer_than.finditer(text, *clause) if self.closer_than else ()
        for match in rivals:
            rival = Span(*match.span())
            if _distance(rival, mention) < distance and not any(_joined(text, place, rival) for place in places):
                return False
        return True


def _distance(one: Span, other: Span) -> int:
    return max(one.start - other.end, other.start - one.end, 0)


_JOINS = re.compile(r"[\s,/-]*(?:and|or|&)?[\s,/-]*(?:\w+ )?", re.IGNORECASE)


def _joined(text: str, one: Span, other: Span) -> bool:
    """Whether only "and", "or", a comma, hyphen or slash (and at most one word) stands between two places."""
    return bool(_JOINS.fullmatch(text[min(one.end, other.end) : max(one.start, other.start)]))


_CUES = {finding: tuple(map(_CompiledCue.compile, cues)) for finding, cues in RULES.items()}
_HEART_RATIO = re.compile(
    r"\b(?:ctr|cti|cardio-?thoracic (?:ratio|index))\b[^\d;]{0,25}?"
    r"(?:(?P<ratio>[01][.,]\d+)|(?P<percent>\d{2}(?:[.,]\d)?) ?%)",
    re.IGNORECASE,
)


def _measures_large_heart(sentence: str) -> bool:
    """A cardiothoracic ratio above one half."""
    match = _HEART_RATIO.search(sentence)
    if match is None:
        return False
    number = float((match["ratio"] or match["percent"]).replace(",", "."))
    return number > (0.5 if match["ratio"] else 50)


# Reports repeat their sentences, within a hospital almost word for word.
@lru_cache(maxsize=16384)
def _findings_in(sentence: str) -> tuple[str, ...]:
    stated = [finding for finding, cues in _CUES.items() if any(cue.states(sentence) for cue in cues)]
    if "Cardiomegaly" not in stated and _measures_large_heart(sentence):
        stated.append("Cardiomegaly")
    return tuple(stated)
