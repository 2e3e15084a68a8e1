"""What a sentence of a report says about a finding it mentions: there, not there, doubtful, past, or only asked about.

The method is that of NegEx (Chapman et al., J Biomed Inform 2001) and ConText (Harkema et al., J Biomed Inform 2009):
trigger phrases open a scope, and the scope ends with its clause or at words that turn the sentence round ("but",
"except for", "due to"). Rules only, so the same text gives the same answer and a reader can see why.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Assertion = Literal["present", "uncertain", "absent", "past", "hypothetical"]
# Which scope wins where several hold.
_STRENGTH: tuple[Assertion, ...] = ("absent", "past", "hypothetical", "uncertain")


class Span(NamedTuple):
    """A half-open range of characters."""

    start: int
    end: int


class Scope(NamedTuple):
    """The characters over which a trigger phrase holds."""

    assertion: Assertion
    start: int
    end: int


def assertion(sentence: str, start: int, end: int) -> Assertion:
    """Tell what a sentence says about its words at `start:end`.

    Args:
        sentence: One sentence, as `split_sentences` gives it.
        start: First character of the mention.
        end: One past its last character.

    Returns:
        "present" (stated as a fact), "uncertain" ("possible", "?"), "absent" (negated, or gone since the last scan),
        "past" (history), or "hypothetical" (what to look for or what it might be, not what was seen). Where several
        hold, absent wins over past, past over hypothetical, hypothetical over uncertain.
    """
    holding = {scope.assertion for scope in scopes(sentence) if scope.start <= start and end <= scope.end}
    return next((candidate for candidate in _STRENGTH if candidate in holding), "present")


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(alternatives) + r")", re.IGNORECASE)


# Clauses --------------------------------------------------------------------------------------------------------------

_FINITE_VERB = _pattern(
    r"(?:is|are|was|were|has|have|had|can(?:not)?|could|may|might|should|will)\b",
    r"(?:show(?:s|ed)?|demonstrates?|reveals?|contains?|appears?|remains?|draws?)\b",
)
_HARD_BREAK = re.compile(
    r";|:(?!\d)|\b(?:but|however|although|though|nevertheless|nonetheless|while|whereas|yet)\b", re.IGNORECASE
)
_EXCEPTION = _pattern(
    r"(?:except(?:ing)?(?: for)?|apart from|aside from|other than|with the exception of|besides)\b"
    r"(?! (?:this|that|these|those))"
)
_SOFT_BREAK = re.compile(r",? ?\band\b|,", re.IGNORECASE)
_NEW_STATEMENT = re.compile(r"(?:,| and| with)\s+(?=no\b|without\b|there (?:is|are|was|were)\b)", re.IGNORECASE)
_NO_SUBJECT = re.compile(
    r"\s*(?:in|at|on|of|to|from|with|which|especially|more|the largest|some|both)\b", re.IGNORECASE
)
_NEGATION_WORD = _pattern(r"(?:no|not|without|absence|free|negative)\b")


@lru_cache(maxsize=16384)
def clauses(sentence: str) -> tuple[Span, ...]:
    """Split a sentence into clauses that each make one statement.

    Args:
        sentence: One sentence.

    Returns:
        Character ranges in order, then one for every bracket: what stands in brackets is a statement of its own,
        though its characters also lie in the clause around it.
    """
    outer, brackets = _blank_brackets(sentence)
    cuts = {0, len(outer)} | {match.start() for match in _HARD_BREAK.finditer(outer)}
    for match in _EXCEPTION.finditer(outer):
        cuts.add(match.start())
        comma = outer.find(",", match.end())
        if comma > 0:
            cuts.add(comma)
    for match in _NEW_STATEMENT.finditer(outer):
        # "no nodules, no masses or effusion was seen" is one list: only what follows a statement is cut off.
        if _FINITE_VERB.search(outer, 0, match.start()) or not _NEGATION_WORD.search(outer, 0, match.start()):
            cuts.add(match.start())
    edges = sorted(cuts)
    for start, end in zip(edges, edges[1:], strict=False):
        cuts.update(_cuts_between_verbs(outer, start, end))
    edges = sorted(cuts)
    spans = [Span(a, b) for a, b in zip(edges, edges[1:], strict=False) if outer[a:b].strip(" ,")]
    return tuple(spans + brackets)


def _blank_brackets(sentence: str) -> tuple[str, list[Span]]:
    brackets = [Span(match.start(), match.end()) for match in re.finditer(r"\((?!-\))[^()]*\)?", sentence)]
    outer = sentence
    for start, end in brackets:
        outer = outer[:start] + " " * (end - start) + outer[end:]
    return outer, brackets


def _cuts_between_verbs(text: str, start: int, end: int) -> Iterator[int]:
    """Between two finite verbs, the place where the second subject most likely begins."""
    verbs = list(_FINITE_VERB.finditer(text, start, end))
    for first, second in zip(verbs, verbs[1:], strict=False):
        places = [
            place
            for place in _SOFT_BREAK.finditer(text, first.end(), second.start())
            if re.search(r"[a-zA-Z]", text[place.end() : second.start()]) and not _NO_SUBJECT.match(text, place.end())
        ]
        if places:
            strong = [place for place in places if place[0].startswith(",") and place[0] != ","]
            commas = [place for place in places if place[0] == ","]
            yield (strong or commas or places)[-1].start()


# Scopes ---------------------------------------------------------------------------------------------------------------

_ADVERB = r"(?:\w+ly |also |yet |still |any |been |be |longer |able to be |possible to |a |as |such )*"
_SEEN = (
    r"(?:detected|observed|seen|identified|found|present|noted|visuali[sz]ed|visible|demonstrated|recogni[sz]ed"
    r"|appreciated|distinguish\w*|available|encountered|evident|apparent|remarkable|demonstrable|discern\w*|selected"
    r"|monitored|followed|watched|reported|determined|existent|exist|included|depicted|shown|viewed|traced"
    r"|remain(?:ing)?|there|mentioned)"
)
_EARLIER = r"(?:previous|prior|old|earlier|last|former|preceding|comparison)"
# "which was not seen in the previous examination" says that it is new.
_IN_PRIOR = rf" (?:in|on|at) (?:the |a |any |his |her |their )?(?:patient's )?{_EARLIER}"
# A "no" before these words denies a change, not the finding.
_CHANGE = (
    r"(?:\w+ ){0,4}?(?:change|changes|difference|differences|progression|regression|alteration"
    r"|(?:increase|decrease|growth|reduction|enlargement) (?:in|of) (?:the |its |their )?"
    r"(?:number|size|dimension|diameter|volume|amount))\b"
)
_COMPLETELY = r"(?:completely|totally|fully|entirely)"
_NEGATES_WHAT_FOLLOWS = _pattern(
    rf"no(?! longer)(?!\.)(?! {_CHANGE})\b",
    r"without(?! (?:iv |intravenous )?contrast)\b",
    r"(?:absence|lack|resolution|disappearance|clearing|removal|devoid|clear) of\b",
    r"(?<![a-z] )(?:absent|resolved)(?= [a-z])",
    r"(?:negative for|free of|free from|neither|nor|never|denies|rather than|instead of)\b",
    r"(?:do|does|did) not (?:show|demonstrate|have|contain|reveal|include|suggest|favou?r)\b",
    r"there (?:is|are|was|were) not?\b",
    r"not (?:found to be |considered |evaluated as )?(?:in favou?r of|compatible|consistent|suggestive|typical)\b",
)
_NEGATES_WHAT_PRECEDES = re.compile(
    rf"\b(?:not|never|cannot) {_ADVERB}{_SEEN}\b(?!{_IN_PRIOR})"
    rf"|\b(?:could|can) ?not {_ADVERB}(?:evaluated|assessed|examined|characteri[sz]ed)"
    r"|\bno longer\b|\bunlikely\b|\(-\)"
    r"|(?<!cannot )(?<!not )\b(?:is|are|was|were|be) (?:both |all )?"
    r"(?:absent|negative|excluded|ruled out|removed|missing)\b"
    rf"|\b(?:has|have|had|was|were|is|are) (?:been )?(?:almost )?(?:{_COMPLETELY} )?"
    r"(?:disappeared|resolved|vanished|removed|withdrawn|resorbed|cleared)\b"
    rf"|\b{_COMPLETELY} (?:regressed|resolved|disappeared)\b|\b(?:regressed|resolved) {_COMPLETELY}\b"
    r"|\b(?:complete|total) (?:regression|resolution)\b"
    r"|: ?(?:none|no|absent|negative|normal|unremarkable|clear|preserved|intact)\b",
    re.IGNORECASE,
)
_NORMAL = _pattern(
    r"(?:is|are|was|were|appears?|remains?|has a|have a)(?: \w+ly)? "
    r"(?:within normal limits|in normal limits|of normal|normal|natural|unremarkable|clear|preserved)\b"
)
# What follows these is stated as a fact even after a "no".
_ENDS_NEGATION = re.compile(
    r", (?:with (?!no\b)|(?:new|stable|unchanged|persist\w+)\b)"
    r"|\b(?:due to|secondary to|because of|owing to|caused by|despite|in the patient"
    r"|on th(?:e|is) (?:back)?ground(?: of)?|accompanying|adjacent to|compared (?:to|with)|outside (?:the|of)"
    r"|with (?:an? )?(?:stable|unchanged|residual|persist\w+|new|mild|minimal))\b",
    re.IGNORECASE,
)
# "not enlarged", "not significantly thickened": the word alone is denied.
_DENIES_A_WORD = _pattern(r"not (?:\w+ly )?\w+ed\b")
_ASKS = _pattern(
    r"(?:in terms of|rule out|r/o|to exclude|(?:evaluat|assess|investigat)\w* for|correlat\w* (?:for|with))\b",
    r"(?:screening|referred|request(?:ed)?|looking|risk|concern(?:ed)?) for\b",
    r"(?:suspicion of|concern about|risk of|if (?:there|clinically|symptoms)|in case of|preliminary diagnosis of)\b",
    r"(?:recommended (?:for|to)|recommend(?:ation)? (?:for|of)|should be (?:considered|kept|evaluated))\b",
)
_DOUBTS = _pattern(
    r"(?:possibl[ey]|probabl[ey]|likely|suspect\w*|suspicious (?:for|of)|suggest\w*|may|might)\b",
    r"(?:could (?:be|represent)|questionable|presum\w*|consistent with|compatible with|in favou?r of|versus|vs)\b",
)
_LEAVES_OPEN = _pattern(r"(?:cannot|can not|could not|not) (?:be )?(?:completely |entirely )?(?:excluded|ruled out)\b")
_TELLS_HISTORY = _pattern(
    r"(?:history of|h/o|past (?:medical )?history|(?:previously|formerly) (?:had|treated|diagnosed))\b",
    r"previously (?:seen|observed|described|interpreted) as\b",
)
_AT_PRIOR_EXAM = re.compile(
    rf"^\W*(?:in|on|at) (?:the |his |her |their )?{_EARLIER}(?: \w+)? ?"
    r"(?:examination|exam|study|scan|ct|review|investigation|tomography|imaging)\b",
    re.IGNORECASE,
)
_SPEAKS_OF_TODAY = _pattern(
    r"(?:stable|current\w*|today|now|still|persist\w*|unchanged|continu\w*|increas\w*|decreas\w*|progress\w*|regress\w*"
    r"|same|compar\w*|similar\w*|no (?:\w+ )?(?:change|difference)|also|remain\w*)\b"
)


@lru_cache(maxsize=16384)
def scopes(sentence: str) -> tuple[Scope, ...]:
    """Find over which characters of a sentence negation, history, questions and doubt hold.

    Args:
        sentence: One sentence.

    Returns:
        The scopes; characters outside all of them are plain statements.
    """
    outer, brackets = _blank_brackets(sentence)
    found: list[Scope] = []
    for span in clauses(sentence):
        found.extend(_clause_scopes(sentence if span in brackets else outer, span))
    prior = _AT_PRIOR_EXAM.match(outer)
    if prior and not _SPEAKS_OF_TODAY.search(outer):
        found.append(Scope("past", prior.end(), len(sentence)))
    return tuple(found)


def _clause_scopes(text: str, span: Span) -> Iterator[Scope]:
    start, end = span
    for match in _NEGATES_WHAT_FOLLOWS.finditer(text, start, end):
        yield Scope("absent", match.end(), _end_of_negation(text, match, end))
    for match in _NEGATES_WHAT_PRECEDES.finditer(text, start, end):
        # A clause that begins with its verb (", which was there before, was not seen") has its subject further left.
        has_subject = len(re.findall(r"[A-Za-z]{3,}", text[start : match.start()])) > 1
        yield Scope("absent", start if has_subject else 0, match.start())
    for match in _DENIES_A_WORD.finditer(text, start, end):
        yield Scope("absent", match.start(), match.end())
    for match in _NORMAL.finditer(text, start, end):
        cut = max(text.rfind(",", start, match.start()), text.rfind(" and ", start, match.start()), start)
        yield Scope("absent", cut, match.start())
    kinds: tuple[tuple[re.Pattern[str], Assertion], ...] = (
        (_ASKS, "hypothetical"), (_TELLS_HISTORY, "past"), (_DOUBTS, "uncertain"),
    )  # fmt: skip
    for pattern, kind in kinds:
        for match in pattern.finditer(text, start, end):
            yield Scope(kind, match.end(), end)
    for match in _LEAVES_OPEN.finditer(text, start, end):
        yield Scope("uncertain", start, match.start())
    for match in re.finditer(r"\?", text[start:end]):
        # "(infection? atelectasis?)" lists what a finding might be; without brackets the finding itself is in doubt.
        yield Scope("hypothetical" if text[start] == "(" else "uncertain", start, start + match.start())


def _end_of_negation(text: str, trigger: re.Match[str], end: int) -> int:
    stop = _ENDS_NEGATION.search(text, trigger.end(), end)
    end = stop.start() if stop else end
    either = text.find(" or ", trigger.end(), end)
    if either > 0:
        # "without nodules or consolidation, and a small effusion": the list ended with its "or".
        closed = text.find(", and ", either, end)
        end = closed if closed > 0 else end
    if trigger[0].lower() == "without":
        verb = _FINITE_VERB.search(text, trigger.end(), end)
        end = verb.start() if verb else end
    return end
