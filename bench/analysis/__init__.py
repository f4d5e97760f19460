"""From raw records to intervals, verdicts and tables."""
