"""Written reports judged: against the true report, a probe, and writers that do not look."""
