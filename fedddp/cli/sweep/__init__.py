"""Comparing: a grid of runs from one file, one table of what came of them (``fedddp sweep SWEEP.toml``)."""
