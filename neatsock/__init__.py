"""neatsock: run unchanged programs on isolated, restartable TCP/IP stacks."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__", "patch"]


def patch() -> None:
    """Replace the socket module's functions in this process by neatsock's (see neatsock.socket)."""
    from importlib import import_module

    import_module("neatsock.socket").patch()
