"""Reports of synthetic chests: the findings of a phantom in varied words, sides, sizes, order and negations.

Every present finding is stated; of the absent ones some are denied, as radiologists do. The wording is drawn from the
seeds of the person and of the scan, so that two scans of one person say the same in other words. The impression names
what is present in a few words. The labeller of the 18 chest findings (`voxelfm_hf.eval.labeller`) reads the findings
back from either.
"""

from collections.abc import Sequence

import numpy as np

from voxelfm_hf.data.phantom.facts import Findings, Lesion, PhantomFacts

_REPORT, _IMPRESSION = 30, 31
# How often an absent finding is denied.
DENIED = 0.35
# Which of the 18 findings of chest CT reports a finding of the phantom is.
REPORT_FINDINGS = {
    "pleural_effusion": "Pleural effusion",
    "emphysema": "Emphysema",
    "consolidation": "Consolidation",
    "cardiomegaly": "Cardiomegaly",
    "pericardial_effusion": "Pericardial effusion",
    "coronary_calcification": "Coronary artery wall calcification",
    "aortic_calcification": "Arterial wall calcification",
    "lymphadenopathy": "Lymphadenopathy",
    "hiatal_hernia": "Hiatal hernia",
    "medical_material": "Medical material",
    "lesion": "Lung nodule",
}
# A ground glass nodule is ground glass, which reports count as opacity.
OPACITY = "Lung opacity"

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
_ABSENT = {
    "pleural_effusion": ("pleural effusion", "pleural fluid", "effusion in the pleural spaces"),
    "emphysema": ("emphysema", "emphysematous destruction"),
    "consolidation": ("consolidation", "airspace consolidation", "parenchymal consolidation"),
    "cardiomegaly": ("cardiomegaly", "enlargement of the heart"),
    "pericardial_effusion": ("pericardial effusion", "pericardial fluid"),
    "coronary_calcification": ("coronary artery calcification", "calcified plaque in the coronary arteries"),
    "aortic_calcification": ("calcification of the aorta", "aortic wall calcification"),
    "lymphadenopathy": ("lymphadenopathy", "enlarged mediastinal lymph nodes", "mediastinal lymphadenopathy"),
    "hiatal_hernia": ("hiatal hernia",),
    "medical_material": ("pacemaker", "implanted cardiac device"),
    "lesion": ("lung nodule", "pulmonary nodule", "nodule in either lung"),
}
_BRIEFLY = {
    "pleural_effusion": ("pleural effusion", "pleural fluid"),
    "emphysema": ("emphysema", "emphysematous destruction"),
    "consolidation": ("consolidation", "airspace consolidation"),
    "cardiomegaly": ("cardiomegaly", "enlarged heart"),
    "pericardial_effusion": ("pericardial effusion", "pericardial fluid"),
    "coronary_calcification": ("coronary calcification", "coronary plaques"),
    "aortic_calcification": ("aortic calcification", "calcified aorta"),
    "lymphadenopathy": ("mediastinal lymphadenopathy", "enlarged mediastinal nodes"),
    "hiatal_hernia": ("hiatal hernia", "sliding hiatal hernia"),
    "medical_material": ("pacemaker", "cardiac pacemaker"),
    "lesion": ("lung nodule", "pulmonary nodule"),
}
_GROUND_GLASS = ("ground-glass lung nodule", "ground-glass pulmonary nodule")
_LESIONS = {
    "solid": ("solid nodule", "solid lung nodule", "well-defined solid nodule"),
    "ground_glass": ("ground-glass nodule", "nodule of ground-glass density", "pure ground glass nodule"),
    "calcified": ("calcified nodule", "densely calcified nodule", "calcified granuloma-like nodule"),
    "spiculated": ("spiculated nodule", "nodule with spiculated margins", "spiculated pulmonary nodule"),
    "cavity": ("cavitary nodule", "nodule with central cavitation", "cavitating nodule"),
}


def report_findings(facts: PhantomFacts) -> dict[str, int]:
    """What a report of a phantom states, 0 or 1 for each name in `REPORT_FINDINGS` and for `OPACITY`.

    Others of the 18 findings do not occur in phantoms.
    """
    present = {**facts.findings.labels(), "lesion": int(facts.lesion.type != "none")}
    named = {name: present[finding] for finding, name in REPORT_FINDINGS.items()}
    return {**named, OPACITY: int(facts.lesion.type == "ground_glass")}


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
    present = {**facts.findings.labels(), "lesion": int(facts.lesion.type != "none")}
    stated = [_stated(finding, facts, rng) for finding, there in present.items() if there]
    denied = [
        _framed(_pick(_ABSENT[finding], rng), _DENIALS, rng)
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
    present = {**facts.findings.labels(), "lesion": int(facts.lesion.type != "none")}
    briefly = {**_BRIEFLY, "lesion": _GROUND_GLASS if facts.lesion.type == "ground_glass" else _BRIEFLY["lesion"]}
    named = [_framed(_pick(briefly[finding], rng), ("{}.",), rng) for finding, there in present.items() if there]
    return " ".join(named) or _pick(_NORMAL, rng)


def _stated(finding: str, facts: PhantomFacts, rng: np.random.Generator) -> str:
    phrases = _lesion_phrases(facts.lesion) if finding == "lesion" else _phrases(finding, facts.findings)
    return _framed(_pick(phrases, rng), _FRAMES, rng)


def _phrases(finding: str, findings: Findings) -> Sequence[str]:
    """Ways to say a finding with its size, side or degree."""
    if finding == "pleural_effusion":
        right, left = findings.pleural_effusion_right_mm, findings.pleural_effusion_left_mm
        side = "bilateral" if right and left else "right" if right else "left"
        depth = max(right, left)
        degree = _degree(depth, (20, 33), ("small", "moderate", "large"))
        where = "in both hemithoraces" if side == "bilateral" else f"on the {side}"
        return (
            f"a {degree} {side} pleural effusion",
            f"a {side} pleural effusion with a depth of {depth:.0f} mm",
            f"pleural fluid {where}, up to {depth:.0f} mm deep",
        )
    if finding == "emphysema":
        degree = _degree(findings.emphysema_fraction, (0.18, 0.29), ("mild", "moderate", "severe"))
        return (
            f"{degree} emphysema",
            f"{degree} emphysematous destruction of both lungs",
            f"emphysema of about {100 * findings.emphysema_fraction:.0f} % of the lungs",
        )
    if finding == "consolidation":
        side, size = findings.consolidation_side, 2 * findings.consolidation_mm
        return (
            f"a consolidation in the {side} lung",
            f"{_a(size)} mm consolidation in the {side} lung",
            f"airspace consolidation of the {side} lung, about {size / 10:.1f} cm across",
        )
    if finding == "cardiomegaly":
        return ("cardiomegaly", "an enlarged heart", "an enlarged cardiac silhouette")
    if finding == "pericardial_effusion":
        thickness = findings.pericardial_effusion_mm
        return (
            "a pericardial effusion",
            f"a pericardial effusion of {thickness:.0f} mm",
            f"a {_degree(thickness, (12, 15), ('small', 'moderate', 'large'))} pericardial effusion",
        )
    if finding == "coronary_calcification":
        degree = _degree(findings.coronary_calcification, (6, 9), ("mild", "moderate", "extensive"))
        return (
            f"{degree} coronary artery calcification",
            f"{degree} calcified plaques in the coronary arteries",
            "coronary atherosclerotic calcification",
        )
    if finding == "aortic_calcification":
        degree = _degree(findings.aortic_calcification, (6, 9), ("mild", "moderate", "extensive"))
        return (
            f"{degree} calcification of the aorta",
            f"{degree} aortic wall calcification",
            "calcified aortic plaques",
        )
    if finding == "lymphadenopathy":
        size = findings.lymphadenopathy_mm
        return (
            "mediastinal lymphadenopathy",
            f"mediastinal lymphadenopathy up to {size:.0f} mm",
            f"enlarged mediastinal lymph nodes measuring up to {size:.0f} mm",
        )
    if finding == "hiatal_hernia":
        width = _degree(findings.hiatal_hernia_mm, (40, 50), ("small", "moderate", "large"))
        return (
            f"a {width} hiatal hernia",
            f"a hiatal hernia of {findings.hiatal_hernia_mm / 10:.1f} cm",
            "a sliding hiatal hernia",
        )
    return (
        "a cardiac pacemaker with its lead in the right ventricle",
        "a pacemaker in the left chest wall",
        "a left-sided pacemaker",
    )


def _lesion_phrases(lesion: Lesion) -> Sequence[str]:
    size, side = lesion.diameter_mm, lesion.side
    return [
        phrase
        for name in _LESIONS[lesion.type]
        for phrase in (
            f"{_a(size)} mm {name} in the {side} lung",
            f"a {name} of {size / 10:.1f} cm in the {side} lung",
            f"a {name} in the {side} lung, {size:.0f} mm in diameter",
        )
    ]


def _framed(phrase: str, frames: Sequence[str], rng: np.random.Generator) -> str:
    """The phrase in a sentence that begins with a capital."""
    sentence = _pick(frames, rng).format(phrase)
    return sentence[0].upper() + sentence[1:]


def _a(size: float) -> str:
    """The rounded size with its article."""
    number = f"{size:.0f}"
    return f"an {number}" if number in ("8", "11", "18") or number.startswith("8") else f"a {number}"


def _degree(value: float, edges: Sequence[float], names: Sequence[str]) -> str:
    return names[sum(value >= edge for edge in edges)]


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
