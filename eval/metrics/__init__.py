"""Metrics: plain numpy functions in the files, `evaluate.load(path)` modules over them in the folders.

Every metric takes `weights` (..., n), row counts for the bootstrap of `voxelfm_hf.eval.statistics`, and is NaN where it
is not defined; the `why_not_...` functions beside them give the sentence.
"""
