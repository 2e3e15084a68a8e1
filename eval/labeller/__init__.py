"""Rule labels of chest CT reports: 18 findings. `python -m voxelfm_hf.eval.labeller REPORTS` measures the rules."""

from voxelfm_hf.eval.labeller.findings import FINDINGS, label_report, label_report_with_evidence

__all__ = ["FINDINGS", "label_report", "label_report_with_evidence"]
