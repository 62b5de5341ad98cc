"""``fedddp doctor``: checks of this machine, its network and files."""
