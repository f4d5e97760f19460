"""From an analysis to figures, tables and one offline page."""
