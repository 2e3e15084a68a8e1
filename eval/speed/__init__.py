"""Speed and memory against plain implementations: `python -m voxelfm_hf.eval.speed --help`."""
