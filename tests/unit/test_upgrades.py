"""Whom neatd tells how an upgrade ended (replicas/upgrade.py)."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace
from typing import Any

from neatsock import abi
from replicas.link import REPLICA, News
from replicas.upgrade import Upgrades

LIB = abi.lib


class Asker:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, data: bytes) -> None:
        self.told.append(json.loads(data[abi.HEADER_SIZE :]))

    def error(self, _seq: int, code: int, text: str) -> None:
        self.told.append((code, text))


class Neatd:
    def __init__(self) -> None:
        self.begun: list[int] = []
        self.finished: list[Any] = []
        link = SimpleNamespace(upgrade=lambda path, number: self.begun.append(number))
        state: Any = SimpleNamespace(
            options=SimpleNamespace(mode="stateful"), link=link, running=lambda: [None, None]
        )
        self.upgrades = Upgrades(state, self.finished.append)

    def asks(self, number: int) -> Any:
        asker: Any = Asker()
        assert not self.upgrades.command(asker, 1, {"cmd": "upgrade", "id": number})
        return asker

    def hears(self, number: int, status: int = 0, text: str = "done") -> None:
        inner = abi.pack("struct neat_msg_error", LIB.NEAT_MSG_ERROR, text=text.encode())
        kind = LIB.NEAT_MSG_K_UPGRADED
        self.upgrades.on_news(News(kind, REPLICA, 0, 0, status, 0, number, inner, []))


def test_the_end_of_an_upgrade_that_a_predecessor_began_is_not_the_answer_to_ours() -> None:
    neatd = Neatd()
    asker = neatd.asks(7)
    neatd.hears(5)
    assert asker.told == [] and neatd.finished == []
    neatd.hears(7, -errno.EIO, "failed")
    assert asker.told == [(errno.EIO, "failed")] and neatd.finished == [asker]


def test_who_is_refused_while_another_one_is_under_way_is_the_one_who_asked() -> None:
    neatd = Neatd()
    first, second, third = (neatd.asks(number) for number in (1, 2, 3))
    assert neatd.begun == [1, 2, 3]
    neatd.hears(2, -errno.EBUSY, "another one is under way")
    assert second.told == [(errno.EBUSY, "another one is under way")]
    neatd.hears(1)
    assert first.told == [{"upgraded": 2}] and third.told == []
