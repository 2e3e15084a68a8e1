"""Radiology reports as text: read from tables, cut into sections and sentences, reduced to their abnormal findings."""

from voxelfm_hf.data.reports.tables import Report, parse_report, read_reports, read_rows

__all__ = ["Report", "parse_report", "read_reports", "read_rows"]
