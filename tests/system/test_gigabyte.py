"""Bodies of 1 GiB, compared by checksum: a minute or more, so only with NEATSOCK_LONG=1."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from ..long import LONG
from ..worlds import World
from . import programs
from .programs import Site, free_port, need, serving
from .test_programs import replicas  # noqa: F401 (a fixture)

PIECE, PIECES = 1 << 26, 16

pytestmark = pytest.mark.skipif(not LONG, reason="1 GiB bodies take minutes: NEATSOCK_LONG=1")


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, str]:
    """A site whose large file has 1 GiB, and its SHA-256."""
    root = tmp_path_factory.mktemp("gigabyte") / "www"
    root.mkdir()
    for path in (root, root.parent):
        path.chmod(0o755)
    source, sum_ = random.Random(3), hashlib.sha256()
    with (root / "large.bin").open("wb") as file:
        for _ in range(PIECES):
            piece = source.randbytes(PIECE)
            sum_.update(piece)
            file.write(piece)
    return Site(root, b"", b""), sum_.hexdigest()


@pytest.mark.parametrize("server", ["lighttpd", "nginx", "nginx-2-workers"])
def test_a_gigabyte(
    server: str,
    replicas: World,  # noqa: F811
    gigabyte: tuple[Site, str],
    scratch: Path,
) -> None:
    site, expected = gigabyte
    port = free_port()
    with serving(replicas, programs.FILE_SERVERS[server](site, port), port, scratch / "log"):
        url, curl = f"http://127.0.0.1:{port}/large.bin", need("curl")
        code = f"{curl} -sS --max-time 300 {url} | sha256sum"
        found = replicas.run("sh", "-c", code, timeout=320).stdout.split()[0]
    assert found == expected
