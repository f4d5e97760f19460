"""Runs a sweep: the runner, its fork servers and the workers."""
