"""Choices by name: a family of dataclasses, or a class of the user's by its import path."""
