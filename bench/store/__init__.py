"""Records: their schema and the append-only log."""
