"""One host of the harness (harness.c) and a scripted remote end for it.

Time is the host's own fake clock in microseconds; it moves only when a test says so. Nothing here
blocks. Sequence numbers of `Peer` are relative: each side's SYN is 0, its first byte is 1.
"""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cffi

from tests.stack.packet import Options, Segment, bits, decode

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "replicas/stack"
SOURCES = ("tcp", "tcp_adopt", "tcp_fsm", "tcp_share", "tcp_syn", "tcp_tw", "tcp_in", "tcp_ack",
           "tcp_reass", "tcp_sack", "tcp_rack", "tcp_out", "tcp_opt", "tcp_timer", "tcp_cc", "flow",
           "icmp", "ip", "link", "lo", "stack", "timer", "udp", "csum", "filter", "ip_addr",
           "ip_deliver", "ip_frag", "ip_hop", "icmp_error")  # fmt: skip
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes",
            "-Wmissing-prototypes", "-Wvla", "-Werror")  # fmt: skip

ESTABLISHED, SYN_SENT, SYN_RCVD, FIN_WAIT_1, FIN_WAIT_2 = 1, 2, 3, 4, 5
CLOSE_WAIT, LAST_ACK, CLOSING = 8, 9, 11
LISTENING, CONNECTING, CONNECTED, RX_EOF, TX_SHUT, ERROR, HUP, DEAD = 2, 4, 8, 16, 32, 64, 128, 256
OPT_FLAGS, OPT_RCVBUF, OPT_SNDBUF, OPT_KEEPIDLE, OPT_KEEPINTVL, OPT_KEEPCNT = 0, 1, 2, 3, 4, 5
OPT_USER_TIMEOUT, OPT_MAXSEG, OPT_LINGER, OPT_DEFER_ACCEPT = 6, 7, 8, 9
OPT_TOS, OPT_TTL, OPT_SYNCNT, OPT_LINGER2, OPT_CONGESTION = 10, 11, 12, 13, 14
READABLE, WRITABLE, STATE = 1, 2, 4  # enum sock_event
NODELAY, CORK, KEEPALIVE, LINGER, QUICKACK_OFF, MORE = 1, 2, 4, 8, 16, 128
QUICKACKS, PUSHES = 1 << 16, 1 << 24  # counts of 8 bits
NEVER = 2**64 - 1
MS, S = 1000, 1_000_000
LOCALHOST = 0x7F000001
HERE, THERE = 0x0A000001, 0x0A000002
HOUR = 3600 * S
LIKE_LINUX = Options(mss=1460, wscale=7, sack_ok=True, ts=(0, 0))

ffi = cffi.FFI()


def declarations() -> str:
    """What the harness offers, as cffi wants it."""
    source = (ROOT / "tests/stack/harness.h").read_text()
    structs = re.findall(r"^struct host_(?:config|info) \{.*?^\};", source, re.M | re.S)
    functions = re.findall(r"^API (.*?;)$", source, re.M | re.S)
    return "\n".join(["struct host;", *structs, *functions])


ffi.cdef(declarations())


def compile_c(out: Path, sources: Iterable[Path], *flags: str) -> None:
    """gcc with the project's warnings. Raises CalledProcessError; gcc's words are on stderr."""
    command = ["gcc", "-std=gnu11", "-g", *WARNINGS, f"-I{ROOT}/replicas/abi", f"-I{STACK}", *flags]
    subprocess.run([*command, *map(str, sources), "-o", str(out)], check=True)


def stack_sources() -> list[Path]:
    return [STACK / f"{name}.c" for name in SOURCES]


def build(directory: Path) -> Any:
    """The harness as a loaded library."""
    out = directory / "harness.so"
    sources = [ROOT / "tests/stack/harness.c", *stack_sources()]
    # With the checks of the quarantine build: units of work leave control blocks as they must be.
    compile_c(out, sources, "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DNEAT_QUARANTINE")
    return ffi.dlopen(str(out))


@dataclass(frozen=True)
class Config:
    """`addr` 0 = no uplink; buffers in bytes."""

    addr: int = HERE
    prefix: int = 24
    gateway: int = 0
    mtu: int = 1500
    lo_mtu: int = 65535
    rcvbuf: int = (1 << 20) - 4096  # told by a shift of 4
    sndbuf: int = 1 << 20
    connections: int = 256
    backlog: int = 64
    time_wait_ms: int = 60000
    app_sockets: int = 0
    app_buffers: int = 1 << 30
    seed: int = 1
    now_us: int = 1_000_000_000


def option_words(options: dict[int, int] | None) -> Any:
    words = [0] * 16
    for index, value in (options or {}).items():
        words[index] = value
    return ffi.new("uint32_t[16]", words)


class Host:
    """The stack under test with its application's side."""

    def __init__(self, lib: Any, config: Config = Config()) -> None:
        self.lib, self.config = lib, config
        fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
        self.h = lib.host_new(ffi.new("struct host_config *", fields))
        assert self.h != ffi.NULL
        self.sent: list[tuple[int, bytes]] = []
        self.buf = ffi.new("uint8_t[]", 1 << 20)

    def free(self) -> None:
        self.lib.host_free(self.h)

    # ---- time and wire ----

    @property
    def now(self) -> int:
        return int(self.lib.host_now(self.h))

    @property
    def deadline(self) -> int:
        return int(self.lib.host_deadline(self.h))

    def collect(self) -> None:
        while (n := self.lib.host_out(self.h, self.buf, len(self.buf))) >= 0:
            self.sent.append((self.now, bytes(ffi.buffer(self.buf, n))))

    def at(self, now: int) -> None:
        """Let time be `now`; every timer on the way runs at its own time."""
        while (due := self.deadline) <= now:
            self.lib.host_time(self.h, max(due, self.now))
            self.collect()
        self.lib.host_time(self.h, now)
        self.collect()

    def advance(self, us: int) -> None:
        self.at(self.now + us)

    def packets(self) -> list[bytes]:
        """IP packets sent since the last call."""
        self.collect()
        out, self.sent = [p for _, p in self.sent], []
        return out

    def segments(self) -> list[Segment]:
        self.collect()
        out, self.sent = [decode(p, at) for at, p in self.sent if p[9] == 6], []
        return out

    def learn(self, addr: int) -> None:
        """The neighbour's ARP request arrived; `input` does it for every source."""
        self.lib.host_learn(self.h, addr)

    def input(self, packet: bytes) -> None:
        self.lib.host_in(self.h, packet, len(packet))
        self.collect()

    def give_back(self, packet: bytes) -> None:
        """The nic did not send it: another replica has a connection of that tuple."""
        self.lib.host_return(self.h, packet, len(packet))
        self.collect()

    def ask(self, packet: bytes) -> int:
        """The nic asks whether the tuple is in use here: 1 or 0, or -1 = no answer."""
        answer = int(self.lib.host_ask(self.h, packet, len(packet)))
        self.collect()
        return answer

    # ---- application ----

    def listen(self, port: int, backlog: int = 16, addr: int = 0,
               options: dict[int, int] | None = None) -> int:  # fmt: skip
        return int(self.lib.host_listen(self.h, addr, port, backlog, option_words(options)))

    def connect(self, raddr: int, rport: int, lport: int = 0, laddr: int = 0,
                options: dict[int, int] | None = None) -> int:  # fmt: skip
        """Slot, or -errno."""
        words = option_words(options)
        return int(self.lib.host_connect(self.h, laddr, lport, raddr, rport, words))

    def accept(self, listener: int) -> int:
        """Slot, or -EAGAIN."""
        return int(self.lib.host_accept(self.h, listener))

    def ports(self, first: int, last: int) -> int:
        """Only these are free for connect(); 0, 0 = all. How often the stack asked so far."""
        return int(self.lib.host_ports(self.h, first, last))

    def pair(self) -> tuple[int, int]:
        """Both ends of a connection on lo: who connected, who accepted."""
        listener = self.listen(80)
        client = self.connect(LOCALHOST, 80)
        server = self.accept(listener)
        assert client >= 0 < server
        return client, server

    def write(self, slot: int, data: bytes) -> int:
        return int(self.lib.host_write(self.h, slot, data, len(data)))

    def reborn(self, death: int) -> int:
        """A successor takes over; how many half-open connections."""
        return int(self.lib.host_reborn(self.h, death))

    def read(self, slot: int, most: int = 1 << 20) -> bytes:
        if most > len(self.buf):
            self.buf = ffi.new("uint8_t[]", most)
        n = self.lib.host_read(self.h, slot, self.buf, most)
        return bytes(ffi.buffer(self.buf, n))

    def readable(self, slot: int) -> int:
        return int(self.lib.host_readable(self.h, slot))

    def room(self, slot: int) -> int:
        return int(self.lib.host_room(self.h, slot))

    def shutdown(self, slot: int, how: int = 2) -> None:
        self.lib.host_shutdown(self.h, slot, how)

    def close(self, slot: int) -> None:
        self.lib.host_close(self.h, slot)

    def abort(self, slot: int) -> None:
        self.lib.host_abort(self.h, slot)

    def unlisten(self, slot: int) -> None:
        self.lib.host_unlisten(self.h, slot)

    def option(self, slot: int, index: int, value: int) -> None:
        self.lib.host_option(self.h, slot, index, value)

    def info(self, slot: int) -> Any:
        out = ffi.new("struct host_info *")
        self.lib.host_info(self.h, slot, out)
        return out

    def state(self, slot: int) -> int:
        return int(self.info(slot).state)

    def flags(self, slot: int) -> int:
        return int(self.info(slot).flags)

    def error(self, slot: int) -> int:
        return int(self.info(slot).err)

    # ---- datagrams ----

    def udp(self, port: int, addr: int = 0, options: dict[int, int] | None = None) -> int:
        """Slot of a UDP socket, or -errno."""
        return int(self.lib.host_udp_open(self.h, addr, port, option_words(options)))

    def send_to(self, slot: int, addr: int, port: int, data: bytes) -> None:
        self.lib.host_udp_send(self.h, slot, addr, port, data, len(data))
        self.collect()

    def write_raw(self, slot: int, data: bytes) -> None:
        """Bytes that need not be datagrams."""
        self.lib.host_udp_write(self.h, slot, data, len(data))
        self.collect()

    def recv_from(self, slot: int) -> tuple[bytes, int, int] | None:
        """(data, address, port) of the next datagram, None if there is none."""
        addr, port = ffi.new("uint32_t *"), ffi.new("uint16_t *")
        n = self.lib.host_udp_recv(self.h, slot, self.buf, len(self.buf), addr, port)
        if n == -errno.EAGAIN:
            return None
        assert n >= 0, "the ring holds no datagrams"
        return bytes(ffi.buffer(self.buf, n)), int(addr[0]), int(port[0])

    def peer(self, slot: int, addr: int, port: int) -> None:
        self.lib.host_udp_peer(self.h, slot, addr, port)

    def udp_close(self, slot: int) -> None:
        self.lib.host_udp_close(self.h, slot)
        self.collect()

    def udp_reborn(self) -> None:
        self.lib.host_udp_reborn(self.h)
        self.collect()

    @property
    def blocks(self) -> list[int]:
        """States of all control blocks in use; those without an application are in no slot."""
        states = ffi.new("uint32_t[1024]")
        n = self.lib.host_blocks(self.h, states, len(states))
        return [int(states[i]) for i in range(min(n, len(states)))]

    @property
    def time_waits(self) -> int:
        return int(self.lib.host_time_waits(self.h))

    def flip(self, slot: int, bit: int) -> None:
        """One bit of the slot's control block changes."""
        self.lib.host_flip(self.h, slot, bit)

    def drops(self) -> dict[str, int]:
        """Counters that are not zero, by name."""
        out, i = {}, 0
        while name := ffi.string(self.lib.host_drop_name(i)):
            assert isinstance(name, bytes)
            if count := self.lib.host_drops(self.h, i):
                out[name.decode()] = int(count)
            i += 1
        return out


@dataclass
class Peer:
    """The other end, played by the test: nothing is sent or answered by itself."""

    host: Host
    port: int = 80
    rport: int = 40000
    addr: int = THERE
    iss: int = 1_000_000
    window: int = 65535
    options: Options = field(default_factory=Options)
    ts: bool = False
    host_iss: int = 0
    slot: int = 0

    def send(self, flags: str, seq: int, ack: int | None = None, data: bytes = b"", *,
             window: int | None = None, options: Options | None = None,
             ts: tuple[int, int] | None = None, tos: int = 0) -> None:  # fmt: skip
        """`ack` None: that field is 0. Timestamps: now, unless `ts` says otherwise."""
        opts = options or Options()
        if opts.sack:
            base = self.host_iss
            blocks = tuple(((base + a) % 2**32, (base + b) % 2**32) for a, b in opts.sack)
            opts = replace(opts, sack=blocks)
        if ts is not None or self.ts:
            opts = replace(opts, ts=ts if ts is not None else (self.clock(), 0))
        self.host.input(
            Segment(
                src=self.addr, dst=self.host.config.addr, sport=self.rport, dport=self.port,
                seq=self.iss + seq, ack=0 if ack is None else self.host_iss + ack,
                flags=bits(flags), window=self.window if window is None else window,
                options=opts, data=data, tos=tos,
            ).encode()
        )  # fmt: skip

    def clock(self) -> int:
        return self.host.now // 1000 % 2**32

    def recv(self) -> list[Segment]:
        """Everything sent to this peer since the last call, numbers relative."""
        self.host.collect()
        mine, rest = [], []
        for at, packet in self.host.sent:
            if packet[9] != 6:
                rest.append((at, packet))
                continue
            seg = decode(packet, at)
            if (seg.dst, seg.dport, seg.sport) == (self.addr, self.rport, self.port):
                mine.append(self.relative(seg))
            else:
                rest.append((at, packet))
        self.host.sent = rest
        return mine

    def relative(self, seg: Segment) -> Segment:
        sack = tuple(((a - self.iss) % 2**32, (b - self.iss) % 2**32) for a, b in seg.options.sack)
        return replace(
            seg,
            seq=(seg.seq - self.host_iss) % 2**32,
            ack=(seg.ack - self.iss) % 2**32 if seg.flags & bits("A") else 0,
            options=replace(seg.options, sack=sack),
        )

    def one(self) -> Segment:
        """The only segment sent since the last call."""
        got = self.recv()
        assert len(got) == 1, [show(s) for s in got]
        return got[0]

    def none(self) -> None:
        got = self.recv()
        assert not got, [show(s) for s in got]

    # ---- handshakes ----

    def syn(self, options: Options | None = None, **kwargs: Any) -> Segment:
        """Open towards the host's listener; its SYN-ACK, numbers relative."""
        self.host_iss = 0
        opts = self.options if options is None else options
        if opts.ts is not None:
            opts = replace(opts, ts=(self.clock(), 0))
        self.send("S", 0, options=opts, **kwargs)
        answer = self.one()
        assert answer.letters == "SA"
        self.host_iss = answer.seq
        return self.relative(replace(answer, ack=answer.ack + self.iss))

    def open(self, listener: int, options: Options | None = None) -> int:
        """Whole passive open; returns the accepted slot."""
        answer = self.syn(options)
        self.ts = answer.options.ts is not None
        self.send("A", 1, 1)
        self.slot = self.host.accept(listener)
        assert self.slot > 0
        return self.slot

    def accept(self, options: dict[int, int] | None = None, syn: Options | None = None,
               window: int | None = None) -> int:  # fmt: skip
        """Whole active open of the host towards this peer; returns the host's slot."""
        self.host.learn(self.addr)
        self.slot = self.host.connect(self.addr, self.rport, options=options)
        assert self.slot > 0
        first = [s for s in self.host.segments() if s.dst == self.addr]
        assert [s.letters for s in first] == ["S"]
        self.port, self.host_iss = first[0].sport, first[0].seq
        opts = self.options if syn is None else syn
        ts = (self.clock(), first[0].options.ts[0]) if opts.ts and first[0].options.ts else None
        self.send("SA", 0, 1, options=replace(opts, ts=None), ts=ts, window=window)
        self.ts = opts.ts is not None
        assert self.one().letters == "A"
        return self.slot


def show(seg: Segment) -> str:
    """For messages of failed assertions."""
    o = seg.options
    extra = f" sack {o.sack}" if o.sack else ""
    end = seg.seq + len(seg.data)
    return f"[{seg.at}us {seg.letters} {seg.seq}:{end} ack {seg.ack} win {seg.window}{extra}]"


def autotuned(host: Host) -> int:
    """Receive buffer after 20 round trips in which the peer sends what the window allows.

    The program reads at once.
    """
    listener, peer = host.listen(80), Peer(host)
    peer.syn(Options(mss=1460, wscale=0, sack_ok=True))
    host.advance(10 * MS)
    peer.send("A", 1, 1)
    slot = host.accept(listener)
    at, right = 0, 65535
    for _ in range(20):
        for off in range(at, right, 1460):
            peer.send("A", 1 + off, 1, bytes(min(1460, right - off)))
        at = right
        host.read(slot)
        host.advance(10 * MS)
        for seg in peer.recv():
            right = max(right, seg.ack - 1 + (seg.window << 4))
    return int(host.info(slot).rcvbuf)
