"""The shared fixtures that these tests use."""

from support import logged as logged
