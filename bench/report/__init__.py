"""The report of one or more runs: an offline HTML page with pictures and data."""

from bench.report.writing import write_report

__all__ = ["write_report"]
