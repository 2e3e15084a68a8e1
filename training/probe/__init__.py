"""Probes on frozen features: many small fits side by side in one loop."""

from voxelfm_hf.training.probe.fit import fit_probes, make_probe, probe_logits

__all__ = ["fit_probes", "make_probe", "probe_logits"]
