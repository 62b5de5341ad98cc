"""Choices by name: a family of dataclasses, or a user's class by its import path."""
