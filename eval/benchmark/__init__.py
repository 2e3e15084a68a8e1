"""Benchmarks: encoders x tasks x label fractions x seeds, from a recipe to tables, figures and a card."""
