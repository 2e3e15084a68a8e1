"""Reports written without a language model: what any generator has to beat before its numbers mean something.

`constant_report` says the same of every scan, `retrieved_reports` repeats the report of the most similar training scan,
`probe_reports` states what classification probes on the same features find, in a fixed sentence a finding.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from voxelfm_hf.data.reports.reduction import format_reduced
from voxelfm_hf.eval.labeller import FINDINGS
from voxelfm_hf.eval.labels import LabelTable
from voxelfm_hf.eval.metrics.binary import auroc
from voxelfm_hf.eval.reports.scores import label_texts, macro_f1
from voxelfm_hf.eval.tasks import classification
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.training.probe.settings import ProbeSettings

# The organ a finding is reported under.
ORGAN_OF = {
    "Medical material": "Other",
    "Arterial wall calcification": "Heart",
    "Cardiomegaly": "Heart",
    "Pericardial effusion": "Heart",
    "Coronary artery wall calcification": "Heart",
    "Hiatal hernia": "Gastrointestinal",
    "Lymphadenopathy": "Other",
}
# Where the name of a finding is not how a report says it.
SAID_AS = {"Medical material": "Pacemaker or catheter"}
POOLER = ProbeSettings(epochs=25, batch_size=16, evaluate_every=1, patience=6)
POOLER_WIDTH = 64
# Training reports that may become the constant one.
CANDIDATES = 200


@dataclass(frozen=True, eq=False)
class ProbeReports:
    """What probes say of the test scans.

    Attributes:
        texts: A report a test scan.
        validation_auroc: Finding -> AUROC of its probe on the validation scans.
    """

    texts: list[str]
    validation_auroc: dict[str, float]


def template_report(findings: Iterable[str]) -> str:
    """A report that states some of the 18 findings by name."""
    organs: dict[str, tuple[str, ...]] = {}
    for finding in findings:
        organ = ORGAN_OF.get(finding, "Lungs")
        organs[organ] = (*organs.get(organ, ()), SAID_AS.get(finding, finding))
    return format_reduced(organs)


def constant_report(train: Sequence[str]) -> str:
    """The training report (one of the first `CANDIDATES`) that would score best if every scan got it."""
    labels = label_texts(train)
    common = labels.sum(0) > 0
    weights = np.ones(len(train))
    scores = [
        float(macro_f1(labels[:, common], np.broadcast_to(row, labels.shape)[:, common], weights=weights))
        for row in labels[:CANDIDATES]
    ]
    return train[int(np.argmax(scores))]


def retrieved_reports(
    train: Sequence[str], train_tokens: Iterable[torch.Tensor], test_tokens: Iterable[torch.Tensor]
) -> list[str]:
    """For every test scan the training report whose scan is nearest: cosine of standardised means over tokens."""
    known, asked = (
        np.stack([tokens.float().mean(0).numpy() for tokens in part]) for part in (train_tokens, test_tokens)
    )
    mean, scale = known.mean(0), known.std(0).clip(1e-6)
    known, asked = ((part - mean) / scale for part in (known, asked))
    known, asked = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (known, asked))
    return [train[int(row)] for row in (asked @ known.T).argmax(1)]


def probe_reports(
    store: FeatureStore,
    ids: Sequence[str],
    reports: Sequence[str],
    splits: Sequence[str],
    patients: Sequence[str],
    *,
    seed: int = 0,
    settings: ProbeSettings = POOLER,
) -> ProbeReports:
    """What attention-pooler probes on the patches say of the test scans, one fixed sentence a finding.

    The probes learn the findings that the rule labeller reads in the training reports; thresholds come from the
    validation scans.

    Args:
        store: Features with patches.
        ids, reports, splits, patients: A row a scan; splits are train, val and test.
        seed: Of the fit.
        settings: How to fit.

    Returns:
        Reports of the test rows in their order, and how well each finding is seen on the validation rows.
    """
    labels = label_texts(reports)
    train = np.array(splits) == "train"
    held = np.array(splits) == "val"
    # A probe needs both classes where it learns and where its threshold is chosen.
    learnable = [i for i in range(len(FINDINGS)) if all(0 < labels[part, i].mean() < 1 for part in (train, held))]
    names = [FINDINGS[i] for i in learnable]
    columns = {name: labels[:, i].tolist() for name, i in zip(names, learnable, strict=True)}
    table = LabelTable("reports", list(ids), {**columns, "split": list(splits), "patient_id": list(patients)})
    data = classification.read(store, table, targets=names, head="pooler")
    probe = classification.fit(data, settings=settings, head_hidden_size=POOLER_WIDTH, seed=seed)
    positive = classification.predict(probe, data, data.rows("test")) >= np.array(probe.config.threshold)
    written = [template_report([name for name, said in zip(names, row, strict=True) if said]) for row in positive]
    seen = classification.predict(probe, data, data.rows("val"))
    areas = [float(auroc(labels[held, i], seen[:, column])) for column, i in enumerate(learnable)]
    return ProbeReports(written, dict(zip(names, areas, strict=True)))


def tokens_of(read: Callable[[str], torch.Tensor], ids: Sequence[str]) -> list[torch.Tensor]:
    """Tokens of scans in half precision, so that many fit into memory."""
    return [read(identifier).half() for identifier in ids]
