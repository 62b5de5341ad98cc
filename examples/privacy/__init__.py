"""Demonstrations: programs that run the real thing and show what it does."""
