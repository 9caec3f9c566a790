"""Kills at random beside what a test does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.killer import Killer


@contextmanager
def killing(control: Path, victims: tuple[str, ...], rate: float) -> Iterator[Killer]:
    """`rate` kills a second of these roles, as long as this lasts."""
    seed = random.SystemRandom().randrange(1 << 16)
    print(f"kills with seed {seed}")
    killer = Killer(control, victims, 0.1, random.Random(seed))
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            killer.run(1, rate)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killer
    finally:
        over.set()
        thread.join()
