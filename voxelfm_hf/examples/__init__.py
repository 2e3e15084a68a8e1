"""Short scripts to copy from, on synthetic scans when given none: `python -m voxelfm_hf.examples.NAME`."""
