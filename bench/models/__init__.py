"""Layers of real models, by name, and the sweeps that are made of them."""

from bench.models.presets import Model, models
from bench.models.selection import Selection, select, select_config, select_model

__all__ = ["Model", "Selection", "models", "select", "select_config", "select_model"]
