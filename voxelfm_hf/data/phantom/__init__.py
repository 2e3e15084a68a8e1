"""Synthetic chest CTs of which everything is known: `python -m voxelfm_hf.data.phantom OUT` writes a folder of them."""

from voxelfm_hf.data.phantom.chest import LABELS, LESION_TYPES, Phantom, draw_facts, make_phantom

__all__ = ["LABELS", "LESION_TYPES", "Phantom", "draw_facts", "make_phantom"]
