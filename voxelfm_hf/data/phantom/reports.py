"""Reports of synthetic chests: the findings of a phantom in varied words, sides, sizes, order and negations.

Every present finding is stated; of the absent ones some are denied, as radiologists do. The wording is drawn from the
seeds of the person and of the scan, so that two scans of one person say the same in other words. The impression names
what is present in a few words. The labeller of the 18 chest findings (`voxelfm_hf.eval.labeller`) reads the findings
back from either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from voxelfm_hf.data.phantom.facts import PhantomFacts

_REPORT, _IMPRESSION = 30, 31
# How often an absent finding is denied.
DENIED = 0.35


@dataclass(frozen=True)
class _Wording:
    """How reports speak of a finding of the phantom.

    Attributes:
        stated: Ways to say that it is there; in braces `degree`, `side`, `where`, and the size as `mm`, `cm`, `percent`
            and with its article (`a_mm`).
        briefly: Ways to name it.
        absent: What is denied where it is absent.
        size: Its size in mm, its share, or its number.
        side: right, left or bilateral.
        edges, degrees: Sizes from which on the second and the third degree hold.
    """

    stated: tuple[str, ...]
    briefly: tuple[str, ...]
    absent: tuple[str, ...]
    size: Callable[[PhantomFacts], float] = lambda facts: 0.0
    side: Callable[[PhantomFacts], str] = lambda facts: ""
    edges: tuple[float, ...] = ()
    degrees: tuple[str, ...] = ("",)


def _effusion_side(facts: PhantomFacts) -> str:
    right, left = facts.findings.pleural_effusion_right_mm, facts.findings.pleural_effusion_left_mm
    return "bilateral" if right and left else "right" if right else "left"


_WORDINGS = {
    "pleural_effusion": _Wording(
        stated=(
            "a {degree} {side} pleural effusion",
            "a {side} pleural effusion with a depth of {mm:.0f} mm",
            "pleural fluid {where}, up to {mm:.0f} mm deep",
        ),
        briefly=("pleural effusion", "pleural fluid"),
        absent=("pleural effusion", "pleural fluid", "effusion in the pleural spaces"),
        size=lambda facts: max(facts.findings.pleural_effusion_right_mm, facts.findings.pleural_effusion_left_mm),
        side=_effusion_side,
        edges=(20, 33),
        degrees=("small", "moderate", "large"),
    ),
    "emphysema": _Wording(
        stated=(
            "{degree} emphysema",
            "{degree} emphysematous destruction of both lungs",
            "emphysema of about {percent:.0f} % of the lungs",
        ),
        briefly=("emphysema", "emphysematous destruction"),
        absent=("emphysema", "emphysematous destruction"),
        size=lambda facts: facts.findings.emphysema_fraction,
        edges=(0.18, 0.29),
        degrees=("mild", "moderate", "severe"),
    ),
    "consolidation": _Wording(
        stated=(
            "a consolidation in the {side} lung",
            "{a_mm} mm consolidation in the {side} lung",
            "airspace consolidation of the {side} lung, about {cm:.1f} cm across",
        ),
        briefly=("consolidation", "airspace consolidation"),
        absent=("consolidation", "airspace consolidation", "parenchymal consolidation"),
        size=lambda facts: 2 * facts.findings.consolidation_mm,
        side=lambda facts: facts.findings.consolidation_side,
    ),
    "cardiomegaly": _Wording(
        stated=("cardiomegaly", "an enlarged heart", "an enlarged cardiac silhouette"),
        briefly=("cardiomegaly", "enlarged heart"),
        absent=("cardiomegaly", "enlargement of the heart"),
    ),
    "pericardial_effusion": _Wording(
        stated=(
            "a pericardial effusion",
            "a pericardial effusion of {mm:.0f} mm",
            "a {degree} pericardial effusion",
        ),
        briefly=("pericardial effusion", "pericardial fluid"),
        absent=("pericardial effusion", "pericardial fluid"),
        size=lambda facts: facts.findings.pericardial_effusion_mm,
        edges=(12, 15),
        degrees=("small", "moderate", "large"),
    ),
    "coronary_calcification": _Wording(
        stated=(
            "{degree} coronary artery calcification",
            "{degree} calcified plaques in the coronary arteries",
            "coronary atherosclerotic calcification",
        ),
        briefly=("coronary calcification", "coronary plaques"),
        absent=("coronary artery calcification", "calcified plaque in the coronary arteries"),
        size=lambda facts: facts.findings.coronary_calcification,
        edges=(6, 9),
        degrees=("mild", "moderate", "extensive"),
    ),
    "aortic_calcification": _Wording(
        stated=(
            "{degree} calcification of the aorta",
            "{degree} aortic wall calcification",
            "calcified aortic plaques",
        ),
        briefly=("aortic calcification", "calcified aorta"),
        absent=("calcification of the aorta", "aortic wall calcification"),
        size=lambda facts: facts.findings.aortic_calcification,
        edges=(6, 9),
        degrees=("mild", "moderate", "extensive"),
    ),
    "lymphadenopathy": _Wording(
        stated=(
            "mediastinal lymphadenopathy",
            "mediastinal lymphadenopathy up to {mm:.0f} mm",
            "enlarged mediastinal lymph nodes measuring up to {mm:.0f} mm",
        ),
        briefly=("mediastinal lymphadenopathy", "enlarged mediastinal nodes"),
        absent=("lymphadenopathy", "enlarged mediastinal lymph nodes", "mediastinal lymphadenopathy"),
        size=lambda facts: facts.findings.lymphadenopathy_mm,
    ),
    "hiatal_hernia": _Wording(
        stated=("a {degree} hiatal hernia", "a hiatal hernia of {cm:.1f} cm", "a sliding hiatal hernia"),
        briefly=("hiatal hernia", "sliding hiatal hernia"),
        absent=("hiatal hernia",),
        size=lambda facts: facts.findings.hiatal_hernia_mm,
        edges=(40, 50),
        degrees=("small", "moderate", "large"),
    ),
    "medical_material": _Wording(
        stated=(
            "a cardiac pacemaker with its lead in the right ventricle",
            "a pacemaker in the left chest wall",
            "a left-sided pacemaker",
        ),
        briefly=("pacemaker", "cardiac pacemaker"),
        absent=("pacemaker", "implanted cardiac device"),
    ),
    "lesion": _Wording(
        stated=(
            "{a_mm} mm {nodule} in the {side} lung",
            "a {nodule} of {cm:.1f} cm in the {side} lung",
            "a {nodule} in the {side} lung, {mm:.0f} mm in diameter",
        ),
        briefly=("lung nodule", "pulmonary nodule"),
        absent=("lung nodule", "pulmonary nodule", "nodule in either lung"),
        size=lambda facts: facts.lesion.diameter_mm,
        side=lambda facts: facts.lesion.side,
    ),
}
_GROUND_GLASS = ("ground-glass lung nodule", "ground-glass pulmonary nodule")
_NODULES = {
    "solid": ("solid nodule", "solid lung nodule", "well-defined solid nodule"),
    "ground_glass": ("ground-glass nodule", "nodule of ground-glass density", "pure ground glass nodule"),
    "calcified": ("calcified nodule", "densely calcified nodule", "calcified granuloma-like nodule"),
    "spiculated": ("spiculated nodule", "nodule with spiculated margins", "spiculated pulmonary nodule"),
    "cavity": ("cavitary nodule", "nodule with central cavitation", "cavitating nodule"),
}
_NORMAL = (
    "Normal chest CT.",
    "No acute abnormality in the chest.",
    "The lungs are clear and the mediastinum is unremarkable.",
    "Unremarkable CT of the thorax.",
    "No pathological finding in the chest.",
)
# Each fits singular and plural.
_FRAMES = ("{}.", "{} noted.", "The scan shows {}.", "Findings include {}.", "CT demonstrates {}.")
_DENIALS = ("No {}.", "No evidence of {}.", "{} not seen.", "No sign of {}.", "Negative for {}.", "Without {}.")


def write_report(facts: PhantomFacts) -> str:
    """Write the report of a phantom.

    Args:
        facts: Of the phantom; equal facts give the same text.

    Returns:
        One paragraph.

    Example:
        >>> from voxelfm_hf.data.phantom import draw_facts
        >>> write_report(draw_facts(2)) == write_report(draw_facts(2))
        True
    """
    rng = np.random.default_rng([facts.seed, facts.acquisition_seed, _REPORT])
    present = _present(facts)
    stated = [
        _framed(_pick(_statements(finding, facts), rng), _FRAMES, rng) for finding, there in present.items() if there
    ]
    denied = [
        _framed(_pick(_WORDINGS[finding].absent, rng), _DENIALS, rng)
        for finding, there in present.items()
        if not there and rng.random() < DENIED
    ]
    sentences = stated + denied
    order = rng.permutation(len(sentences))
    if not stated:
        return " ".join([_pick(_NORMAL, rng), *(sentences[i] for i in order)])
    return " ".join(sentences[i] for i in order)


def write_impression(facts: PhantomFacts) -> str:
    """Name the findings of a phantom in a few words each, without sizes and sides; nothing absent is named.

    Args:
        facts: Of the phantom; equal facts give the same text.
    """
    rng = np.random.default_rng([facts.seed, facts.acquisition_seed, _IMPRESSION])
    briefly = {finding: wording.briefly for finding, wording in _WORDINGS.items()}
    if facts.lesion.type == "ground_glass":
        briefly["lesion"] = _GROUND_GLASS
    named = [_framed(_pick(briefly[name], rng), ("{}.",), rng) for name, there in _present(facts).items() if there]
    return " ".join(named) or _pick(_NORMAL, rng)


def _present(facts: PhantomFacts) -> dict[str, int]:
    """0 or 1 for each finding, the lesion last."""
    return {**facts.findings.labels(), "lesion": int(facts.lesion.type != "none")}


def _statements(finding: str, facts: PhantomFacts) -> Sequence[str]:
    """Ways to say a present finding with its size, side or degree."""
    wording = _WORDINGS[finding]
    size, side = wording.size(facts), wording.side(facts)
    values = {
        "degree": wording.degrees[sum(size >= edge for edge in wording.edges)],
        "side": side,
        "where": "in both hemithoraces" if side == "bilateral" else f"on the {side}",
        "mm": size,
        "cm": size / 10,
        "percent": 100 * size,
        "a_mm": _with_article(size),
    }
    nodules = _NODULES[facts.lesion.type] if finding == "lesion" else ("",)
    return [statement.format(**values, nodule=nodule) for nodule in nodules for statement in wording.stated]


def _framed(phrase: str, frames: Sequence[str], rng: np.random.Generator) -> str:
    """The phrase in a sentence that begins with a capital."""
    sentence = _pick(frames, rng).format(phrase)
    return sentence[0].upper() + sentence[1:]


def _with_article(size: float) -> str:
    """A rounded size below 100 with its article."""
    number = f"{size:.0f}"
    return f"an {number}" if number in ("11", "18") or number.startswith("8") else f"a {number}"


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
