"""The layers as pytest-benchmark suites: ``pytest bench/suites --benchmark-json out.json``."""
