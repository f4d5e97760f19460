"""Comparisons of two runs, and of two versions of the code that are alive at once.

Called `comparing`, because ``bench.compare`` is a function of the Python interface.
"""
