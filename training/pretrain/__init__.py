"""Pre-training by self-distillation: `accelerate launch -m voxelfm_hf.training.pretrain RECIPE --data SHARDS`."""
