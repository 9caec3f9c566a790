"""A Python library-in-miniature: attaches to a real instance, as a process of its own.

The functions of Client mirror what shim/client does with the control socket. Because neatd watches
processes, a Client that must die by itself runs in a subprocess (see `Puppet`).
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from neatsock import abi

LIB, ffi = abi.lib, abi.ffi
ROOT = Path(__file__).resolve().parents[2]
FDS = 8


def kernel_may_bind(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


class Refused(Exception):
    """NEAT_MSG_ERROR came."""


class Client:
    """One attached process. It owns what it received, until close()."""

    made: ClassVar[list[Client]] = []  # by this process, not closed yet

    def __init__(self, path: Path, attach: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self._owned = ExitStack()
        self._owned.callback(self.sock.close)
        Client.made.append(self)
        self.sock.connect(str(path))
        self.seq = 0
        if attach:
            self.attach()

    # ---- messages ----

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def receive(self) -> tuple[Any, bytes, list[int]]:
        """(header, datagram, our descriptors); Refused for NEAT_MSG_ERROR, EOFError at the end."""
        data, ancillary, _, _ = self.sock.recvmsg(abi.MSG_MAX, socket.CMSG_SPACE(4 * FDS))
        if not data:
            raise EOFError
        fds = array.array("i")
        for _, kind, raw in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds.frombytes(raw)
        for fd in fds:
            self._owned.callback(os.close, fd)
        head = abi.header(data)
        if head.type == LIB.NEAT_MSG_ERROR:
            raise Refused(abi.text(abi.unpack("struct neat_msg_error", data).text))
        return head, data, list(fds)

    def ask(self, ctype: str, kind: int, answer: str, **fields: Any) -> Any:
        self.seq += 1
        self.send(abi.pack(ctype, kind, self.seq, **fields))
        head, data, _ = self.receive()
        assert head.seq == self.seq
        return abi.unpack(answer, data)

    # ---- attach ----

    def attach(self, **fields: Any) -> None:
        message = {"pid": os.getpid(), "abi_size": abi.fingerprint(), "comm": b"client"} | fields
        self.send(abi.pack("struct neat_msg_attach", LIB.NEAT_MSG_ATTACH, 1, **message))
        self.read_attached()

    def read_attached(self) -> None:
        head, data, fds = self.receive()
        assert head.type == LIB.NEAT_MSG_ATTACHED
        attached = abi.unpack("struct neat_msg_attached", data)
        self.app_id, self.proc = int(attached.app_id), int(attached.proc)
        self.instance, self.spin_us = int(attached.instance), int(attached.spin_us)
        self.registry_fd, self.app_fd = fds
        size = ffi.sizeof("struct neat_registry")
        self._registry = self._read_only(self.registry_fd, size)
        self.registry = ffi.cast("struct neat_registry *", ffi.from_buffer(self._registry))
        self.app = self._object("struct neat_app", self.app_fd, LIB.NEAT_APP_SIZE)
        self._pub: dict[int, mmap.mmap] = {}
        self._channels: dict[int, abi.Object] = {}
        self.segments: list[tuple[Any, list[int]]] = []
        for _ in range(attached.replicas):
            head, data, fds = self.receive()
            assert head.type == LIB.NEAT_MSG_SEGMENT
            self.segments.append((abi.unpack("struct neat_msg_segment", data), fds))

    def _read_only(self, fd: int, size: int) -> mmap.mmap:
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._owned.callback(memory.close)
        return memory

    def _object(self, ctype: str, fd: int, size: int) -> abi.Object:
        made = abi.Object(ctype, os.dup(fd), size)
        self._owned.callback(made.close)
        return made

    def child(self, proc: int) -> Client:
        """What a forked child does: it enters itself and wants a connection of its own."""
        entry = self.app.at.procs[proc]
        entry.pid.v = os.getpid()
        entry.state.v = LIB.NEAT_PROC_LIVE
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = Client.__new__(Client)
        own.__dict__ |= self.__dict__ | {"sock": ours, "seq": 0, "proc": proc}
        own._owned = ExitStack()  # the rest is the parent's
        own._owned.callback(ours.close)
        Client.made.append(own)
        ours.settimeout(20)
        fields = {"pid": os.getpid(), "proc": proc, "app_id": self.app_id}
        message = abi.pack(
            "struct neat_msg_attach",
            LIB.NEAT_MSG_CHILD,
            1,
            abi_size=abi.fingerprint(),
            instance=self.instance,
            **fields,
        )
        self.send(message, [theirs.fileno()])
        theirs.close()
        return own

    def pub(self, replica: int, slot: int) -> Any:
        """The published half of a slot."""
        if replica not in self._pub:
            size = ffi.sizeof("struct neat_seg_pub")
            fd = self.segments[replica][1][0]
            self._pub[replica] = self._read_only(fd, size)
        seg = ffi.cast("struct neat_seg_pub *", ffi.from_buffer(self._pub[replica]))
        return seg.slots[slot]

    def channels(self, replica: int) -> Any:
        """struct neat_channels of a replica."""
        if replica not in self._channels:
            fd, size = self.segments[replica][1][2], ffi.sizeof("struct neat_channels")
            self._channels[replica] = self._object("struct neat_channels", fd, size)
        return self._channels[replica].at

    def eventfd(self, fd: int, gen: int) -> None:
        kind = LIB.NEAT_MSG_EVENTFD
        self.send(abi.pack("struct neat_msg_eventfd", kind, proc=self.proc, gen=gen), [fd])

    # ---- sockets ----

    def new_sock(self, sock: int, gen: int = 1, fd: int = 5) -> None:
        """What socket() leaves in shared memory: a record and an fd table entry."""
        record = self.app.at.socks[sock]
        record.gen.v, record.refs.v = gen, 1
        record.state.v = LIB.NEAT_SOCK_NEW
        self.set_fd(fd, sock, gen)

    def set_fd(self, fd: int, sock: int, gen: int = 1, proc: int | None = None) -> None:
        row = LIB.NEAT_APP_FDS + (self.proc if proc is None else proc) * LIB.NEAT_FDS_MAX * 8
        word = gen << 32 | sock
        self.app.memory[row + fd * 8 : row + fd * 8 + 8] = word.to_bytes(8, "little")

    def bind(self, sock: int, port: int = 0, addr: int = 0, gen: int = 1, flags: int = 0) -> int:
        """The port, or -errno."""
        answer = self.ask(
            "struct neat_msg_bind",
            LIB.NEAT_MSG_BIND,
            "struct neat_msg_result",
            sock=sock,
            sock_gen=gen,
            addr=addr,
            port=port,
            proto=socket.IPPROTO_TCP,
            flags=flags,
        )
        return int(answer.status) or int(answer.value)

    def unbind(self, sock: int, gen: int = 1) -> None:
        message = abi.pack("struct neat_msg_bind", LIB.NEAT_MSG_UNBIND, sock=sock, sock_gen=gen)
        self.send(message)

    def listen(self, sock: int, port: int = 0, addr: int = 0, gen: int = 1, **fields: Any) -> Any:
        """struct neat_msg_listening."""
        fields = {"backlog": 128} | fields
        return self.ask(
            "struct neat_msg_listen",
            LIB.NEAT_MSG_LISTEN,
            "struct neat_msg_listening",
            sock=sock,
            sock_gen=gen,
            addr=addr,
            port=port,
            **fields,
        )

    def port_entry(self, port: int, addr: int = 0) -> tuple[int, int] | None:
        """(state, mask) of a port in the registry page, found as the library finds it."""
        entries = LIB.NEAT_REGISTRY_PORTS
        i = ((port << 8 ^ 6) * 2654435761 & 0xFFFFFFFF) >> 16 & (entries - 1)
        while True:
            entry = self.registry.ports[i]
            state = int(entry.state.v)
            if state == LIB.NEAT_PORT_FREE:
                return None
            if state != LIB.NEAT_PORT_TOMB and (entry.port, entry.addr) == (port, addr):
                return state, int(entry.mask.v)
            i = (i + 1) % entries

    def close(self) -> None:
        """Twice is once. Shared memory that it gave out must not be touched afterwards."""
        if self in Client.made:
            Client.made.remove(self)
        self._owned.close()


class Instance:
    """A real instance in a directory of its own."""

    def __init__(self, directory: Path, name: str = "t", **env: str) -> None:
        self.directory = directory
        self.name = name
        self.env = (
            dict(os.environ)
            | {
                "NEATSOCK_DIR": str(directory),
                "PYTHONPATH": str(ROOT),
            }
            | env
        )

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.sock"

    def cli(self, *args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """neatsock ARGS."""
        return subprocess.run(
            [sys.executable, "-m", "neatsock", *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            **kwargs,
        )

    def up(self, *args: str) -> Instance:
        done = self.cli("up", "--name", self.name, *args)
        assert done.returncode == 0, done.stderr
        return self

    def down(self) -> None:
        self.cli("down", "--name", self.name)

    def status(self) -> dict[str, Any]:
        done = self.cli("status", "--json", "--name", self.name)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def quick_status(self) -> dict[str, Any]:
        """Status without a Python start; {} when nobody answers."""
        try:
            client = Client(self.path, attach=False)
        except OSError:
            return {}
        try:
            client.send(abi.pack_text(LIB.NEAT_MSG_CLI, b'{"cmd": "status"}'))
            data = client.sock.recv(1 << 20)
        except OSError:
            return {}
        finally:
            client.close()
        answer: dict[str, Any] = json.loads(data[abi.HEADER_SIZE :]) if data else {}
        return answer

    def log(self) -> str:
        return self.path.with_suffix(".log").read_text()


class Puppet:
    """A process of its own that runs `code` with a Client named c and may be killed.

    The code may say(x) (one JSON line that step() returns) and then waits for the next step.
    """

    PRELUDE = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from neatsock import abi\n"
        "from tests.control.client import Client, LIB\n"
        "def say(x=None): print(json.dumps(x), flush=True); sys.stdin.readline()\n"
        "c = Client(Path(sys.argv[1]))\n"
    )

    def __init__(self, instance: Instance, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PRELUDE + code + "\nsay()", str(instance.path)],
            cwd=ROOT,
            env=instance.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self) -> Any:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the puppet died"
        return json.loads(line)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
