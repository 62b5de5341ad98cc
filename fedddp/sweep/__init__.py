"""Comparing: a grid of runs from one file, one table of what came of them (``python -m fedddp.sweep SWEEP.toml``)."""
