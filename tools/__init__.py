"""Makers of what the package embeds."""
