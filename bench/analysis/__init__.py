"""From raw records to intervals, verdicts and tables."""

from bench.analysis.loading import analyse, load

__all__ = ["analyse", "load"]
