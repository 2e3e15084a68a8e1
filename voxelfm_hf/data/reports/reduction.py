"""A report reduced to its abnormal findings per organ: what a report generator is trained to say.

A sentence is kept if it states something abnormal (a word of `ABNORMAL` that is not negated, history or a question),
without its clauses that only deny or call normal. It goes to the organ it names first, or else that its words imply, or
else that the heading or the sentence before was about. Nothing is rephrased. Another reduction, such as one made with a
language model, is written in the same lines by `format_reduced`.
"""

import re
from collections.abc import Mapping

from voxelfm_hf.data.reports.negation import assertion, clauses
from voxelfm_hf.data.reports.phrases import phrase_pattern
from voxelfm_hf.data.reports.tables import Report, parse_report
from voxelfm_hf.data.reports.text import split_sentences

NO_ABNORMALITY = "No abnormal findings."

# In this order the organs are asked. Words of an organ come before words that only imply it.
_ORGAN_WORDS = {
    "Heart": (
        "heart, cardi*, pericard*, coronar*, myocard*, atri*, biatrial, ventricle*, ventricular, mitral, aorta, "
        "aortic, arcus, thoracic arter*, pulmonary artery|arteries, pulmonary trunk, ctr"
    ),
    "Lungs": (
        "lung*, pulmon*, pleur*, hemithora*, bronch*, peribronch*, trachea*, carina, lingul*, subpleur*, diaphragm*, "
        "hemidiaphragm*"
    ),
    "Gastrointestinal": (
        "esophag*, oesophag*, stomach, gastric, duoden*, bowel*, intestin*, colon*, jejun*, ileum|ileal, cecum, cecal, "
        "appendi*, sigmoid*, rectum, rectal, pancrea*, mesenter*"
    ),
    "Liver": "liver, hepat*, intrahepat*, gallbladder, gall bladder, bile, biliary, choledoch*, portal vein*",
    "Spleen": "spleen*, splen*",
    "Kidneys": "kidney*, renal, ureter*, pelvicaly*, nephr*, perinephric, perirenal",
    "Bones": (
        "bone*, osseous, skelet*, vertebra*, spine, spinal, thoracic spine, lumbar*, rib|ribs, sternum, sternal, "
        "clavic*, scapul*, humer*, femur, femoral head*, endplate*, disc|disk"
    ),
    "Other": (
        "thyroid*, adrenal*, surrenal*, breast*, axill*, lymph node|nodes, lymphadenop*, adenopath*, mediastin*, "
        "thym*, bladder, prostat*, uter*, ovar*, adnex*, periton*, intraabdominal, intra abdominal, abdominal wall, "
        "abdominal aorta, chest wall, subcutaneous, skin, muscle*, soft tissue*, inguinal, umbilic*"
    ),
}
_IMPLIED = {
    "Heart": "cardiomeg*, atherosclero*",
    "Lungs": (
        "emphys*, atelect*, *bronchiect*, consolid*, ground glass, opacit*, nodul*, pneumon*, effusion*, pneumothora*, "
        "mosaic, septal, sequel*, fibro*, infiltrat*, bulla*, tree in bud, scar*, lobe|lobes, fissur*"
    ),
    "Gastrointestinal": "hiat*, diverticul*, hernia*, ascites",
    "Liver": "steato*, cirrho*, cholelith*, gallstone*, cholecyst*",
    "Spleen": "splenomeg*, splenul*",
    "Kidneys": "nephrolith*, hydroneph*, renal stone*",
    "Bones": (
        "fractur*, osteophyt*, degenerat*, spondyl*, scolio*, kypho*, osteopor*, osteopen*, lytic, sclerotic, schmorl*"
    ),
    "Other": "goiter*, catheter*, pacemaker*, port, tube, gynecomast*",
}
ORGANS = ("Lungs", "Heart", "Gastrointestinal", "Liver", "Spleen", "Kidneys", "Bones", "Other")

# Words that say that something is not as it should be.
ABNORMAL = (
    "abnormal*, abscess*, adenoma*, adenopath*, air bronchogram*, aneurysm*, ascites, atelect*, athero*, atroph*, "
    "bleb*, *bronchiect*, bulla|bullae|bullous, calcif*, calcul*, cancer*, carcinom*, catheter*, cavitary, "
    "cavitation, cavity, cirrho*, collaps*, collection*, compress*, congest*, consolid*, contusion*, cyst, cystic, "
    "cysts, decreas*, defect*, deform*, degenerat*, deviat*, dilat*, displac*, dissect*, distort*, diverticul*, "
    "ectas*, ectat*, edema*, effusion*, elevat*, embol*, emphys*, empyema*, enlarg*, erosi*, fatty, fibro*, fluid, "
    "fractur*, free air, gallstone*, goiter*, ground glass, gynecomast*, haemat*, haemorr*, hemangioma*, hematoma*, "
    "hemorrhag*, hernia*, heterogen*, hydroneph*, hydrothora*, hyperdens*, hyperinfl*, hyperplas*, hypertroph*, "
    "hypodens*, increas*, infarct*, infiltrat*, inflam*, irregular*, *itis, kypho*, lesion*, *lithiasis, loss, "
    "lucen*, lymph node|nodes, lymphadenop*, lytic, malig*, mass, masses, *megaly, metast*, mosaic, narrow*, necro*, "
    "neoplas*, nodul*, obstruct*, occlu*, opacit*, osteo*, pacemaker*, perforat*, plaque*, pneumon*, pneumothora*, "
    "polyp*, prominen*, resect*, reticul*, retract*, ruptur*, scar|scars|scarring, sclero*, scolio*, sequel*, "
    "spondyl*, *steato*, stenos*, stent*, stone*, stricture*, suture*, thick*, thrombo*, thrombus, tortuos*, tree in "
    "bud, tube, tumor*, tumour*, ulcer*, widen*, wider than normal"
)
# These two are said of what is normal too: "wall thickness is normal".
_WEAK = phrase_pattern("thick*, prominen*")
_CALLED_NORMAL = phrase_pattern("is|are|was|were|appears|appear ~ normal|natural|unremarkable|preserved|open|patent")

_ABNORMAL = phrase_pattern(ABNORMAL)
_ORGAN_PATTERNS = {organ: phrase_pattern(words) for organ, words in _ORGAN_WORDS.items()}
_IMPLIED_PATTERNS = {organ: phrase_pattern(words) for organ, words in _IMPLIED.items()}
# "LIVER: ..." of structured reports; the heading is dropped, the organ remembered.
_HEADING_WORDS = {**_ORGAN_PATTERNS, "Lungs": phrase_pattern(f"{_ORGAN_WORDS['Lungs']}, airway*, thorax, chest")}
_ORGAN_HEADING = re.compile(r"^(?!In |As |At |On |When )(?P<heading>[A-Z][A-Za-z]*(?:[ ,/&-]+[A-Za-z]+){0,3}):\s*")
_EDGE = re.compile(
    r"^[\s,;:]*(?:(?:and|but|however|although|though|while|whereas|with)\b[\s,]*)?|[\s,;:]+$", re.IGNORECASE
)


def reduce_report(report: Report | str) -> dict[str, tuple[str, ...]]:
    """Reduce a report to its abnormal findings per organ.

    Args:
        report: A report, or its text. Its findings are used; the impression only where there are no findings.

    Returns:
        For each of `ORGANS` with an abnormality its statements in the order of the report, without repetitions. Great
        vessels count as Heart, pleura and airways as Lungs, gallbladder and bile ducts as Liver, pancreas as
        Gastrointestinal, everything else as Other. Empty if nothing abnormal is stated.
    """
    report = parse_report(report) if isinstance(report, str) else report
    reduced: dict[str, list[str]] = {organ: [] for organ in ORGANS}
    headed: str | None = None
    last: str | None = None
    for sentence in split_sentences(report.findings or report.impression):
        heading = _ORGAN_HEADING.match(sentence)
        if heading and (named := _headed_organ(heading["heading"])):
            headed, sentence = named, sentence[heading.end() :]
        statement = _abnormal_part(sentence)
        organ = _first_match(_ORGAN_PATTERNS, statement) or _first_match(_ORGAN_PATTERNS, sentence) or headed
        organ = organ or _first_match(_IMPLIED_PATTERNS, statement) or last
        last = organ
        if statement and not _repeats(statement, reduced[organ or "Other"]):
            reduced[organ or "Other"].append(statement)
    return {name: tuple(statements) for name, statements in reduced.items() if statements}


def format_reduced(reduced: Mapping[str, tuple[str, ...]]) -> str:
    """Write a reduced report as text, one line an organ.

    Args:
        reduced: What `reduce_report` returns.

    Returns:
        Lines such as "Lungs: Linear atelectasis in the left lower lobe." in the order of `ORGANS`, or `NO_ABNORMALITY`.
    """
    lines = [f"{organ}: {' '.join(f'{s}.' for s in reduced[organ])}" for organ in ORGANS if reduced.get(organ)]
    return "\n".join(lines) or NO_ABNORMALITY


def report_target(report: Report) -> str:
    """The text a generator learns to write for a report: lines by organ, or `NO_ABNORMALITY`."""
    return format_reduced(reduce_report(report))


def _abnormal_part(sentence: str) -> str:
    """The sentence without the clauses that only deny something or call it normal; empty if nothing is left."""
    kept, abnormal = [], False
    for start, end in clauses(sentence):
        if sentence[start] == "(":
            continue
        praised = _CALLED_NORMAL.search(sentence, start, end)
        mentions = [
            assertion(sentence, *match.span()) in ("present", "uncertain")
            for match in _ABNORMAL.finditer(sentence, start, end)
            if not (praised and _WEAK.match(match[0]))
        ]
        abnormal = abnormal or any(mentions)
        if any(mentions) or not (mentions or praised):
            kept.append(sentence[start:end])
    if not abnormal:
        return ""
    text = re.sub(r"\s+", " ", _EDGE.sub("", "".join(kept))).strip()
    return text[:1].upper() + text[1:]


def _headed_organ(heading: str) -> str | None:
    """The organ a heading names, by its name here or by the words of reports."""
    name = heading.capitalize()
    return name if name in ORGANS else _first_match(_HEADING_WORDS, heading)


def _first_match(patterns: Mapping[str, re.Pattern[str]], text: str) -> str | None:
    """The organ whose word stands first in the text."""
    found = [(match.start(), organ) for organ, pattern in patterns.items() if (match := pattern.search(text))]
    return min(found)[1] if found else None


def _repeats(statement: str, earlier: list[str]) -> bool:
    """Whether every longer word of a statement was said already in one of the earlier ones."""
    words = _content(statement)
    return any(words <= _content(other) for other in earlier)


def _content(statement: str) -> set[str]:
    return {word for word in re.findall(r"\w+", statement.lower()) if len(word) > 3 or word.isdigit()}
