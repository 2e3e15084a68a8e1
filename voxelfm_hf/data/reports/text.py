"""Cutting a radiology report into sections and sentences."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Section(NamedTuple):
    """One headed part of a report."""

    title: str
    text: str


# What sections are called in reports, under the one name they get here.
SECTION_NAMES: dict[str, tuple[str, ...]] = {
    "findings": ("findings", "finding", "report", "results", "description", "body"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "summary", "opinion", "assessment"),
    "indication": (
        "indication", "indications", "reason for exam", "reason for examination", "reason for study", "history",
        "clinical history", "clinical information", "clinical indication", "clinical data", "clinical details",
        "clinical question", "clinical statement", "medical history",
    ),
    "technique": (
        "technique", "techniques", "protocol", "procedure", "contrast", "exam", "examination", "study", "dose",
        "radiation dose", "examination technique", "imaging technique",
    ),
    "comparison": ("comparison", "comparisons", "prior studies", "previous examinations"),
    "recommendation": ("recommendation", "recommendations"),
}  # fmt: skip
_SECTION_OF = {name: section for section, names in SECTION_NAMES.items() for name in names}
_HEADING_WORDS = "|".join(sorted(_SECTION_OF, key=len, reverse=True))
# A heading is a known name with a colon, or alone on its line; in the middle of a line it must begin with a capital.
_HEADING = re.compile(
    rf"(?:^|\n)[ \t]*[*#>]*[ \t]*(?P<line>(?i:{_HEADING_WORDS}))[ \t]*\**[ \t]*(?::[ \t]*\**|(?=\n|$))"
    r"|(?<![\w,])(?P<inline>[A-Z][A-Za-z]*(?: [A-Za-z]+){0,2})[ \t]*:(?=\s|$)"
)


def split_sections(text: str) -> list[Section]:
    """Split a report at its section headings.

    Args:
        text: A whole report; headings look like `FINDINGS:` or `Impression:`, or stand alone on a line.

    Returns:
        The sections in order; `title` is a key of `SECTION_NAMES`, or "" for text before any heading. A report whose
        findings have no heading of their own ("COMPARISON: none. The lungs are ...") gets them as findings.
    """
    sections: list[Section] = []
    title, start = "", 0
    for match in _HEADING.finditer(text):
        name = _SECTION_OF.get((match["line"] or match["inline"]).lower())
        if name is None:
            continue
        if text[start : match.start()].strip():
            sections.append(Section(title, text[start : match.start()].strip()))
        title, start = name, match.end()
    if text[start:].strip():
        sections.append(Section(title, text[start:].strip()))
    if any(section.title in ("", "findings") for section in sections):
        return sections
    return _with_unheaded_findings(sections)


def _with_unheaded_findings(sections: list[Section]) -> list[Section]:
    """Let the last section before the impression end after its first sentence, if a report could follow there."""
    before = [index for index, section in enumerate(sections) if section.title != "impression"]
    if not before:
        return sections
    title, text = sections[before[-1]]
    end = _STOP.search(text)
    if end is None or len(_STOP.findall(text)) < 3:
        return sections
    head, tail = Section(title, text[: end.start()]), Section("findings", text[end.end() :])
    return [*sections[: before[-1]], head, tail, *sections[before[-1] + 1 :]]


_LIST_ITEM = re.compile(r"[\"“”•·▪●]+|(?:^|(?<=\s))\*+(?=\s)|\?{3,}|(?:^|\n)[ \t]*(?:[-–—]|\(?\d{1,2}[.)](?!\d))(?=\s)")
_NUMBERED = re.compile(r"(?:(?<=[.;:?!] )|^)\(?\d{1,2}[.)][ \t]+(?=[A-Z])")
# A line break ends a sentence before a capital, unless the line plainly goes on.
_LINE_BREAK = re.compile(
    r"(?<![,\w])\n|\n\s*\n|(?<!,)(?<!\band)(?<!\bor)(?<!\bthe)(?<!\bof)(?<!\bin)[ \t]*\n(?=\s*[A-Z0-9(])"
)
# A full stop ends a sentence before a space, or before a capital where the space was forgotten; "5.5 mm" has neither.
_STOP = re.compile(r"(?<=[.;!])(?:\s+|(?=[A-Z][a-z]))|(?<=\?)\s+(?=[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:approx|e\.g|i\.e|vs|cf|fig|incl|resp|dr|st|se|im)|\b[A-Z])\.$", re.IGNORECASE)
# Lists whose items lost their full stops: "Emphysema in both lungs Small effusion on the left".
_LOST_STOP = re.compile(r"(?<=[a-z)])\s+(?=[A-Z][a-z]{3,}\s+[a-z])")
_NEGATED = re.compile(r"\b(?:no|not|without|absence|free|negative)\b", re.IGNORECASE)
_GOES_ON = re.compile(
    r"\b(?:the|a|an|of|in|on|at|to|for|with|and|or|by|from|possible|known|as|is|are|was|were|type|favou?r|both)$",
    re.IGNORECASE,
)


def split_sentences(text: str) -> list[str]:
    """Split report text into sentences and list items.

    Args:
        text: Text of a section or report; bullets, quotation marks, numbers of items and line breaks divide it too.

    Returns:
        Sentences in order with single spaces and without the final full stop; pieces without a letter are dropped.
    """
    sentences: list[str] = []
    for block in _LIST_ITEM.split(text.replace("\r\n", "\n")):
        for line in _LINE_BREAK.split(block):
            line = _NUMBERED.sub("", re.sub(r"\s+", " ", line).strip())
            for piece in _joined(_STOP.split(line)):
                for part in _split_lost_stops(piece):
                    part = part.strip(" .;-")
                    if re.search(r"[A-Za-z]", part):
                        sentences.append(part)
    return sentences


def _joined(pieces: Iterable[str]) -> Iterator[str]:
    """Undo a split inside brackets or after an abbreviation."""
    held = ""
    for piece in pieces:
        held = f"{held} {piece}" if held else piece
        in_brackets = held.count("(") > held.count(")") and len(held) < 300
        if not in_brackets and not _ABBREVIATION.search(held):
            yield held
            held = ""
    if held:
        yield held


def _split_lost_stops(sentence: str) -> Iterator[str]:
    start = 0
    for match in _LOST_STOP.finditer(sentence):
        left = sentence[start : match.start()]
        # A negation must keep its object: "no sign of a Bochdalek hernia" stays whole.
        if len(left.split()) >= 4 and not _NEGATED.search(left) and not _GOES_ON.search(left):
            yield left
            start = match.end()
    yield sentence[start:]
