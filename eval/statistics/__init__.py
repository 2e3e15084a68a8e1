"""Statistics, a file a subject: bootstrap by patient, DeLong's and the log-rank test, survival curves."""
