"""Known reasons why a layer is slow, each found by measuring one call: the evidence, and what to do about it."""

from bench.lint.rules import Situation, lint

__all__ = ["Situation", "lint"]
