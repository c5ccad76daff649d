"""Versions of the API server's objects."""

from __future__ import annotations


def is_newer(version: str, other: str) -> bool:
    """Return True if a resourceVersion of an object is a later one of it than another; False if that is not known.

    >>> is_newer("1000", "999"), is_newer("a", "b")
    (True, False)
    """
    return version.isdecimal() and other.isdecimal() and int(version) > int(other)
