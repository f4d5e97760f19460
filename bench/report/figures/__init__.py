"""The pictures of a report, one theme a file; each function gives a :class:`~bench.report.figures.canvas.Picture`."""
