"""Has pre-training taught a model anything? `python -m voxelfm_hf.eval.learned MODEL --ct CT --out OUT`."""
