"""Fuzz targets: a reader each, fed with files that were right before something in them was changed.

    python -m tests.fuzz READER [--seconds=600] [--seed=0] [--only=NUMBER]

A failure is anything but success or one line that names a mistake: a traceback, a signal, 10 seconds, 2 GB.
"""
