"""Fine-tuning: a backbone and the head of a fitted probe trained together."""
