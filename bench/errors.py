"""The two ways in which a case ends early."""

from __future__ import annotations


class SkipCase(Exception):
    """The case cannot run here; the text says why and what would change that."""


class CaseFailed(Exception):
    """The case ran and went wrong; the text says what was seen."""
