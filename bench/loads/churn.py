"""A server and its clients, all bytes compared: `churn.py serve PORT KIND`, `churn.py load PORT`.

The load prints a line of JSON ten times a second: exchanges so far, connections made, and what
went wrong. Nothing may go wrong.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import sys
import threading
import time

ADDRESS = os.environ.get("CHURN_ADDRESS", "127.0.0.1")


def serve_events(listener: socket.socket) -> None:
    """One thread, epoll."""
    listener.setblocking(False)
    ready = selectors.DefaultSelector()
    ready.register(listener, selectors.EVENT_READ)
    owed: dict[socket.socket, bytes] = {}
    while True:
        for key, _ in ready.select():
            peer = key.fileobj
            assert isinstance(peer, socket.socket)
            if peer is listener:
                try:
                    made, _ = listener.accept()
                except BlockingIOError:
                    continue
                made.setblocking(False)
                owed[made] = b""
                ready.register(made, selectors.EVENT_READ)
                continue
            try:
                if not owed[peer]:
                    owed[peer] = peer.recv(65536)
                if owed[peer]:
                    owed[peer] = owed[peer][peer.send(owed[peer]) :]
                else:
                    raise EOFError
            except BlockingIOError:
                pass
            except (EOFError, OSError):
                ready.unregister(peer)
                del owed[peer]
                peer.close()
                continue
            ready.modify(peer, selectors.EVENT_WRITE if owed[peer] else selectors.EVENT_READ)


def serve_threads(listener: socket.socket) -> None:
    """Four threads in a blocking accept(), one more for each connection."""

    def talk(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                pass  # the load says so

    def take() -> None:
        while True:
            threading.Thread(target=talk, args=[listener.accept()[0]], daemon=True).start()

    for _ in range(4):
        threading.Thread(target=take, daemon=True).start()
    threading.Event().wait()


def serve(port: int, kind: str) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((os.environ.get("CHURN_BIND", ADDRESS), port))
    listener.listen(512)
    print("ready", flush=True)
    if kind == "forked":  # the children share the listener
        for _ in range(2):
            if os.fork() == 0:
                break
        kind = "events"
    (serve_events if kind == "events" else serve_threads)(listener)


class Load:
    def __init__(self, port: int) -> None:
        self.where = (ADDRESS, port)
        self.block = os.urandom(1 << 17)
        self.exchanges = self.connections = 0
        self.broken = 0
        self.wrong: list[str] = []

    def exchange(self, peer: socket.socket, dice: random.Random, most: int) -> None:
        start = dice.randrange(1 << 16)
        sent = self.block[start : start + dice.randrange(1, most)]
        peer.sendall(sent)
        got = bytearray()
        while len(got) < len(sent):
            piece = peer.recv(65536)
            if not piece:
                raise EOFError(f"end of file after {len(got)} of {len(sent)} bytes")
            got += piece
        if got != sent:
            raise ValueError("wrong bytes")
        self.exchanges += 1

    def one(self, dice: random.Random, exchanges: int, most: int, pause: float) -> None:
        with socket.create_connection(self.where, 20) as peer:
            self.connections += 1
            for _ in range(exchanges):
                self.exchange(peer, dice, most)
                if pause:
                    time.sleep(pause)

    def client(self, seed: int, exchanges: int, most: int, pause: float = 0) -> None:
        dice = random.Random(seed)
        while True:
            try:
                self.one(dice, exchanges, most, pause)
            except (OSError, EOFError, ValueError) as err:
                self.broken += 1
                self.wrong.append(f"{type(err).__name__}: {err}")
                time.sleep(0.05)

    def run(self) -> None:
        kinds = [(1, 300, 0.0)] * 4 + [(20, 3000, 0.0)] * 2 + [(200, 60000, 0.0), (40, 200, 0.01)]
        for seed, kind in enumerate(kinds):
            threading.Thread(target=self.client, args=[seed, *kind], daemon=True).start()
        while True:
            time.sleep(0.1)
            now = {"exchanges": self.exchanges, "connections": self.connections}
            now |= {"broken": self.broken}
            print(json.dumps(now | {"wrong": self.wrong[:20]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        Load(int(sys.argv[2])).run()
