"""Errors of other code in one line, for messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).splitlines() or [""])[0].rstrip(".:") or type(error).__name__


def reason(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"
