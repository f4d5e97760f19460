"""Mixture-of-Experts layer implementations behind one interface."""
