"""Synthetic chest CTs of which everything is known: `python -m voxelfm_hf.data.phantom OUT` writes a folder of them."""

from voxelfm_hf.data.phantom.chest import Phantom, draw_facts, make_phantom
from voxelfm_hf.data.phantom.facts import LESION_TYPES
from voxelfm_hf.data.phantom.tissues import LABELS

__all__ = ["LABELS", "LESION_TYPES", "Phantom", "draw_facts", "make_phantom"]
