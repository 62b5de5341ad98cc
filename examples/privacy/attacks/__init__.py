"""The attacks that the demonstrations use."""
