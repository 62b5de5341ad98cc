"""Peers of fedddp under one line protocol: each script runs alone, in an environment of its own."""
