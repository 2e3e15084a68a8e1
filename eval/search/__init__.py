"""The scans of a feature store that are most like a given one."""
