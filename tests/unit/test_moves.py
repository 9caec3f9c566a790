"""When the home of a UDP port moves, step by step (replicas/moves.py)."""

from __future__ import annotations

import pytest

from replicas.moves import Port, decide


@pytest.mark.parametrize(
    ("port", "leaving", "active", "step"),
    [
        (Port(0, None, False, False), set(), 0b11, None),  # nothing drains
        (Port(0, None, False, False), {1}, 0b01, None),  # another one does
        (Port(1, None, False, False), {1}, 0b01, "open"),
        (Port(1, None, False, False), {1}, 0b10, None),  # there is nobody to go to
        (Port(1, 0, False, False), {1}, 0b01, None),  # a socket is missing there
        (Port(1, 0, True, False), {1}, 0b01, "move"),
        (Port(1, 2, True, False), {1, 2}, 0b01, "open"),  # where it was to go drains, too
        (Port(0, 1, True, False), {1}, 0b01, None),  # datagrams are on their way to 1
        (Port(0, 1, True, True), {1}, 0b01, "close"),
        (Port(1, 0, False, False), set(), 0b11, None),  # wanted back: it stays ...
        (Port(1, 0, False, True), set(), 0b11, "close"),  # ... and gives up what was begun
    ],
)
def test_decide(port: Port, leaving: set[int], active: int, step: str | None) -> None:
    assert decide(port, leaving, active) == step
