"""Meters: one quantity a file, each honest about what it cannot see."""
