"""Attacks as evidence: what an update, a sum and a model give away of the examples behind them.

For judging one's own configuration on data that one owns; everything here is published, with its source in each file.
"""
