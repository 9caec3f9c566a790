"""libneatsock.so in this process: loading, patching, and sockets that are ours on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cffi

from neatsock import cli, instance

_ffi: Any = cffi.FFI()
_ffi.cdef(
    "int neatsock_patch(int); void neatsock_explicit(int); void neatsock_instance(const char *);"
    "int neatsock_loaded(void);"
)
_lock = threading.Lock()


@cache
def library() -> Any:
    """The library. OSError if it is not built for this machine."""
    return _ffi.dlopen(str(instance.native("libneatsock.so")))


def patch(default_on: bool, name: str | None = None) -> int:
    """Rewrite the GOT entries of everything loaded; starts the instance if none is up.

    Returns the number of entries changed: 0 if the process is on neatsock already. InstanceError
    says why an instance could not be started. Blocks until the instance is ready.
    """
    with _lock:
        loaded = library()
        name = name or cli.default_name()
        if loaded.neatsock_loaded() and not default_on:
            return 0
        if not loaded.neatsock_loaded():
            instance.ensure(name, instance.StartOptions(auto=True))
            loaded.neatsock_instance(str(instance.socket_path(name)).encode())
        return int(loaded.neatsock_patch(int(default_on)))


@contextmanager
def explicit() -> Iterator[None]:
    """AF_INET stream and datagram sockets that this thread makes inside are on neatsock."""
    loaded = library()
    loaded.neatsock_explicit(1)
    try:
        yield
    finally:
        loaded.neatsock_explicit(0)
