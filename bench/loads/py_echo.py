"""Echo server in Python: ``py_echo.py asyncio|uvloop PORT``."""

from __future__ import annotations

import asyncio
import sys
from typing import cast


class Echo(asyncio.Protocol):
    """Writes back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are WriteTransports without deriving from the class.
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def serve(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Entry point."""
    loop, port = sys.argv[1], int(sys.argv[2])
    if loop == "uvloop":
        import uvloop

        uvloop.install()
    asyncio.run(serve(port))


main()
