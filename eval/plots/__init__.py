"""Figures of results, one a file: each function takes plain arrays or result rows and writes a PNG."""
