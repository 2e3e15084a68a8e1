"""Follow-up of synthetic people: survival times whose hazard is a known function of what was drawn.

Proportional hazards with a Weibull baseline, so the true log risk is the best score there is: its C-index on the same
people is the ceiling for any survival probe.

    hazard(t) = shape / scale * (t / scale) ** (shape - 1) * exp(log risk),  t in months

Censoring does not depend on the person: follow-up ends after 24 to 72 months (uniform, as people enter a study over
four years), or earlier at an exponential time with a mean of 120 months.
"""

from dataclasses import dataclass

import numpy as np

from voxelfm_hf.data.phantom.facts import PhantomFacts

_OUTCOME = 20
WEIBULL_SHAPE = 1.3
WEIBULL_SCALE_MONTHS = 90.0
FOLLOW_UP_MONTHS = (24.0, 72.0)
DROP_OUT_MONTHS = 120.0
# Types whose size raises the risk.
GROWING_LESIONS = ("solid", "spiculated")
TRABECULAR_MIDDLE_HU = 150.0


@dataclass(frozen=True)
class Outcome:
    """What became of a person.

    log_risk: the true log hazard ratio; time_months: until the event or the end of follow-up; event: 1 if it was seen.
    """

    log_risk: float
    time_months: float
    event: int


def log_risk(facts: PhantomFacts) -> float:
    """The true log hazard ratio of a person.

    Per unit: emphysema 4 x share of the lung, effusion 0.03 a mm of depth (both sides together), coronary plaques 0.08
    each, cardiomegaly 0.8, lymph nodes 0.03 a mm, solid or spiculated lesion 0.05 a mm, trabecular bone -0.006 a HU
    above 150.
    """
    findings, lesion = facts.findings, facts.lesion
    return (
        4.0 * findings.emphysema_fraction
        + 0.03 * (findings.pleural_effusion_right_mm + findings.pleural_effusion_left_mm)
        + 0.08 * findings.coronary_calcification
        + 0.8 * findings.cardiomegaly
        + 0.03 * findings.lymphadenopathy_mm
        + 0.05 * lesion.diameter_mm * (lesion.type in GROWING_LESIONS)
        - 0.006 * (facts.body.trabecular_hu - TRABECULAR_MIDDLE_HU)
    )


def draw_outcome(facts: PhantomFacts) -> Outcome:
    """Draw a person's follow-up; the same for every scan of the person."""
    rng = np.random.default_rng([facts.seed, _OUTCOME])
    risk = log_risk(facts)
    # The inverse of the Weibull's cumulative hazard at a unit exponential draw.
    life = WEIBULL_SCALE_MONTHS * (rng.exponential() * np.exp(-risk)) ** (1 / WEIBULL_SHAPE)
    end = min(rng.uniform(*FOLLOW_UP_MONTHS), rng.exponential(DROP_OUT_MONTHS))
    return Outcome(log_risk=risk, time_months=float(min(life, end)), event=int(life <= end))
