"""Written findings beside the probabilities of a probe for the same findings, disagreement marked."""

from collections.abc import Mapping
from dataclasses import dataclass

from voxelfm_hf.eval.labeller import FINDINGS, label_report


@dataclass(frozen=True)
class Agreement:
    """One finding in the text and by the probe.

    Attributes:
        finding: One of the 18.
        stated: Whether the text states it.
        probability: Of the probe.
        positive: Whether the probability reaches the probe's threshold.
    """

    finding: str
    stated: bool
    probability: float
    positive: bool

    @property
    def disagrees(self) -> bool:
        """Whether text and probe say different things."""
        return self.stated != self.positive


def finding_of(name: str) -> str | None:
    """Which of the 18 findings a probe's label means ("pleural_effusion"); None if none or several."""
    plain = name.replace("_", " ").strip()
    for finding in FINDINGS:
        if finding.lower() == plain.lower():
            return finding
    stated = [finding for finding, present in label_report(f"{plain}.").items() if present]
    return stated[0] if len(stated) == 1 else None


def compare_with_probe(text: str, values: Mapping[str, float], positive: Mapping[str, bool]) -> list[Agreement]:
    """The findings that a probe knows, in its order.

    Args:
        text: A written report.
        values, positive: Probability by label and whether it reaches the label's threshold, from `ProbeReader.answer`.
    """
    stated = label_report(text)
    found = []
    for name, probability in values.items():
        finding = finding_of(name)
        if finding is not None:
            said = bool(stated[finding])
            found.append(Agreement(finding, said, float(probability), bool(positive.get(name, probability >= 0.5))))
    return found
