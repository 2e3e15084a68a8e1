"""Releases: what goes to the Hub, the checks before it goes, and the upload."""
