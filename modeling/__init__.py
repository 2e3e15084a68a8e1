"""What travels with the weights: configurations, models, processors (torch, transformers and numpy only)."""
