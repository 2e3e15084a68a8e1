"""What a data set of CT scans is: numbers, pictures, a card, and how far it lies from another."""

from voxelfm_hf.data.describe.characterise import describe

__all__ = ["describe"]
