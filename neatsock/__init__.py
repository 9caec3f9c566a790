"""neatsock: run unchanged programs on isolated, restartable TCP/IP stacks."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__", "patch"]


def patch() -> int:
    """Put this process on neatsock: sockets made from now on, by whatever is already imported.

    Rewrites the GOT entries of all loaded objects, so that C extensions are covered too; starts the
    user's default instance if none is up. Returns the number of entries changed (0: already on
    neatsock). Sockets that exist stay with the kernel. Raises neatsock.instance.InstanceError.
    """
    from neatsock import _core

    return _core.patch(default_on=True)
