"""The report's account of profiled cases: what limits them, and where their time, operations and memory go."""
