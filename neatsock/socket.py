"""The standard library's socket module on neatsock, whatever the process's default is.

The surface is the standard library's: everything that `import socket` offers, with `socket`,
`create_connection`, `create_server` and `fromfd` made of this module's class. Sockets that are not
AF_INET streams or datagrams are the kernel's, as everywhere. Importing loads libneatsock.so and
starts the user's default instance if none is up (InstanceError says why it could not).
"""

from __future__ import annotations

import socket as _std
from socket import *  # noqa: F403
from types import FunctionType
from typing import Any

from neatsock import _core

_core.patch(default_on=False)


class socket(_std.socket):  # type: ignore[no-redef]
    """socket.socket on neatsock; the same methods, exceptions and context manager."""

    def __init__(
        self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        with _core.explicit():
            super().__init__(family, type, proto, fileno)

    def accept(self) -> tuple[socket, Any]:
        """As socket.accept; the connection is of this class too."""
        accepted, address = super().accept()
        timeout = accepted.gettimeout()
        ours = socket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        ours.settimeout(timeout)
        return ours, address


def _here(function: Any) -> Any:
    """The standard library's function with this module's `socket` class as its global."""
    copy = FunctionType(
        function.__code__,
        {**vars(_std), "socket": socket},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__ = function.__doc__
    return copy


SocketType = socket  # type: ignore[assignment,misc]
create_connection = _here(_std.create_connection)
create_server = _here(_std.create_server)
fromfd = _here(_std.fromfd)
