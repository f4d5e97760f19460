"""The analytic model of memory: every implementation written down on tensors without numbers, and its peak."""

from bench.memory.account import PARTS
from bench.memory.model import MemoryModel, memory_of_call

__all__ = ["PARTS", "MemoryModel", "memory_of_call"]
