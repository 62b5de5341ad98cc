"""``fedddp plan``: what a run sends, holds and takes, before it is started."""
