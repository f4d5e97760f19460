"""Only intended names are public."""

from __future__ import annotations

import inspect

import bench


def test_the_python_interface_is_four_functions() -> None:
    assert sorted(bench.__all__) == dir(bench) == ["compare", "load", "run", "write_report"]
    assert all(inspect.isfunction(getattr(bench, name)) for name in bench.__all__)
    assert all(inspect.getdoc(getattr(bench, name)) for name in bench.__all__)
