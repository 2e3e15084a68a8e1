"""Training of report models: `accelerate launch -m voxelfm_hf.training.report RECIPE --stage 1`, then `--stage 2`."""
