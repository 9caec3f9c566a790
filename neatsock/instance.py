"""Instances of neatsock: where they live, how they start, how to ask them.

Imports neither cffi nor asyncio: `neatsock run` pays for it at every start.

An instance is a neat-keeper process and its children; its control socket is DIR/NAME.sock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from neatsock import __version__, rlimits

if TYPE_CHECKING:
    import subprocess

# As in neat_abi.h (tests/unit/test_abi.py compares); cffi would double the time of `neatsock run`.
HEADER = struct.Struct("<IHHII")  # struct neat_msg_header
MAGIC, ABI_VERSION = 0x5441454E, 4
MSG_CLI, MSG_CLI_REPLY, MSG_ERROR = 7, 36, 37
LARGEST = 1 << 20
START_S = 20.0
ASK_S = 10.0
ASK_TIMES = 4  # for what may be asked again when neatd died meanwhile
DOWN_S = 5.0  # then `down` does without neatd
UPGRADE_S = 120.0
REPLICAS_MAX = 16
ALREADY_UP = 3  # exit status of neat-keeper
SUN_PATH = 107
LOG_MAX = 1 << 20  # bytes; a longer log is put aside when an instance starts


class InstanceError(Exception):
    """What went wrong, for a person."""


class NotUp(InstanceError):
    """There is no such instance."""


class HungUp(NotUp):
    """It was up, and hung up before it answered: it ends, or its neatd has died."""


class NoAnswer(InstanceError):
    """It is up, but says nothing in time."""


class OtherVersion(InstanceError):
    """It is up, and of another version: nothing can be asked of it."""


@dataclass(frozen=True)
class StartOptions:
    replicas: int | None = None
    spin_us: int | None = None
    time_wait_ms: int | None = None
    auto: bool = False
    tap: str | None = None
    wire: str | None = None
    address: str | None = None  # A.B.C.D/N, with tap or wire
    gateway: str | None = None
    impair: str | None = None  # FIELD=NUMBER,... of struct neat_wire
    mode: str | None = None  # stateful or stateless
    components: str | None = None  # single or multi
    faults: int | None = None
    fault_window_ms: int | None = None
    hang_ms: int | None = None
    stopped_ms: int | None = None
    quarantine_ms: int | None = None
    rerandomize: int | None = None  # seconds
    replicas_max: int | None = None
    scale: str | None = None  # auto or manual
    scale_up_at: float | None = None  # percent
    scale_down_at: float | None = None
    pin: bool | None = None
    apps_max: int | None = None
    app_sockets: int | None = None  # of each replica
    app_ports: int | None = None
    app_buffers: int | None = None  # MiB in each replica

    @property
    def uplink(self) -> str | None:
        """As status names it."""
        if self.tap:
            return f"tap {self.tap}"
        return f"wire {self.wire}" if self.wire else None

    def arguments(self) -> list[str]:
        """For neat-keeper, which hands them to neatd."""
        out = ["--replicas", str(self.replicas or default_replicas())]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool):
                out += [f"--{field.name}"] * value
            elif field.name != "replicas" and value is not None:
                out += [f"--{field.name.replace('_', '-')}", str(value)]
        return out


def default_replicas() -> int:
    """1 on up to 2 cores, else half of them (measured: docs/decisions.md)."""
    cores = len(os.sched_getaffinity(0))
    return 1 if cores <= 2 else min(cores // 2, REPLICAS_MAX)


def runtime_dir() -> Path:
    """Directory of control sockets, made if missing: 0700 and ours. InstanceError if it is not."""
    if "NEATSOCK_DIR" in os.environ:
        path = Path(os.environ["NEATSOCK_DIR"]).absolute()
    elif os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "neatsock"
    else:
        path = Path(f"/tmp/neatsock-{os.geteuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as err:
        raise InstanceError(f"cannot use the directory {path}: {err.strerror}") from err
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InstanceError(
            f"{path} does not belong to user {os.geteuid()}; "
            "set NEATSOCK_DIR to a directory of yours"
        )
    if found.st_mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as err:
            raise InstanceError(f"cannot use the directory {path}: {err.strerror}") from err
    return path


def socket_path(name: str) -> Path:
    """The control socket of an instance. InstanceError for an impossible name."""
    if not name or "/" in name or name.startswith("."):
        raise InstanceError(f"{name!r} cannot be the name of an instance")
    path = runtime_dir() / f"{name}.sock"
    if len(os.fsencode(path)) > SUN_PATH:
        raise InstanceError(f"{path} is too long for a socket; set NEATSOCK_DIR to a shorter path")
    return path


def native_dir() -> Path:
    """Where libneatsock.so, neat-keeper, neat-replica and neat-nic are."""
    return Path(os.environ.get("NEATSOCK_NATIVE") or Path(__file__).resolve().parent / "_native")


def native(file: str) -> Path:
    path = native_dir() / file
    if not path.exists():
        tree = Path(__file__).resolve().parent.parent  # pip would build another one than this
        how = "run make native" if (tree / "setup.py").exists() else "install it again"
        raise InstanceError(f"{path} is missing: this neatsock is not built; {how}")
    return path


def ask(path: Path, command: dict[str, Any], timeout: float = ASK_S) -> dict[str, Any]:
    """Send one command to an instance and wait for its answer. NotUp when nobody listens."""
    with connection(path, timeout) as sock:
        return exchange(sock, path, command)


def ask_again(path: Path, command: dict[str, Any], timeout: float = ASK_S) -> dict[str, Any]:
    """As ask(), for what may be asked twice: of a neatd that dies meanwhile its successor is asked.

    Not for ever: the command may be what it dies of.
    """
    for _ in range(ASK_TIMES - 1):
        with contextlib.suppress(HungUp):
            return ask(path, command, timeout)
    return ask(path, command, timeout)


def connection(path: Path, timeout: float = ASK_S) -> socket.socket:
    """A control connection. NotUp when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(timeout)
    try:
        sock.connect(str(path))
    except OSError as err:
        sock.close()
        if isinstance(err, (FileNotFoundError, ConnectionRefusedError)):
            raise NotUp(
                f"instance {path.stem!r} is not up; start it: neatsock up --name {path.stem}"
            ) from err
        if isinstance(err, (BlockingIOError, TimeoutError)):  # its queue of connections is full
            raise NoAnswer(f"{path.stem}: nobody accepts connections") from err
        raise InstanceError(f"cannot reach {path}: {err.strerror}") from err
    return sock


def exchange(
    sock: socket.socket, path: Path, command: dict[str, Any], fds: Sequence[int] = ()
) -> dict[str, Any]:
    """One command, with descriptors, and its answer. HungUp when the instance hangs up."""
    body = json.dumps(command).encode()
    head = HEADER.pack(MAGIC, ABI_VERSION, MSG_CLI, HEADER.size + len(body), 1)
    try:
        socket.send_fds(sock, [head + body], fds)
        data = sock.recv(LARGEST)
    except TimeoutError as err:
        raise NoAnswer(f"{path.stem}: no answer within {sock.gettimeout():.0f} s") from err
    except OSError as err:
        raise HungUp(f"instance {path.stem!r} hung up: {err.strerror}") from err
    return _answer(path, data)


def _answer(path: Path, data: bytes) -> dict[str, Any]:
    if len(data) < HEADER.size:
        raise HungUp(f"instance {path.stem!r} hung up")
    magic, version, kind, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC or version != ABI_VERSION:
        raise OtherVersion(
            f"instance {path.stem!r} belongs to another version of neatsock (its shared memory "
            f"has layout {version}, ours {ABI_VERSION}); end it first: "
            f"neatsock down --name {path.stem}"
        )
    if kind == MSG_ERROR:
        text = data[HEADER.size + 8 :].split(b"\0", 1)[0].decode("utf-8", "replace")
        raise InstanceError(text)
    answer: dict[str, Any] = json.loads(data[HEADER.size :])
    return answer


def status(name: str) -> dict[str, Any]:
    """Status of an instance, see docs. NotUp when it is not up."""
    return ask_again(socket_path(name), {"cmd": "status"})


def scale(name: str, count: int) -> dict[str, Any]:
    """That many replicas take new connections when this returns: status. NotUp when it is not up.

    Replicas that are too many may still be draining.
    """
    path = socket_path(name)
    found = ask_again(path, {"cmd": "scale", "replicas": count})
    deadline = time.monotonic() + START_S
    while [r["state"] for r in found["replicas"]].count("ready") != count:
        if time.monotonic() > deadline:
            raise InstanceError(
                f"instance {name!r} has not {count} replicas ready after {START_S:.0f} s; "
                f"its log is {path.with_suffix('.log')}"
            )
        time.sleep(0.005)
        found = status(name)
    return found


def clean_environment() -> dict[str, str]:
    """Ours, without what is meant for programs: nothing is preloaded into an instance."""
    env = {
        k: v for k, v in os.environ.items() if k != "LD_PRELOAD" and not k.startswith("NEATSOCK_")
    }
    root = Path(__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):  # a source tree
        path = env.get("PYTHONPATH")
        env["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else str(root)
    env["PYTHONSAFEPATH"] = "1"
    return env


def programs(options: StartOptions) -> list[str]:
    """Options of neat-keeper: what a replica is started from. Components lie beside neat-tcp."""
    if options.components != "multi":
        return ["--replica-bin", str(native("neat-replica"))]
    return ["--replica-bin", str(native("neat-tcp"))]


def start(name: str, options: StartOptions) -> dict[str, Any]:
    """Start an instance and wait until all its replicas are ready: its status.

    If it is up already, or somebody starts it at the same moment, that one is waited for.
    """
    import subprocess  # costs 10 ms, which `neatsock run` need not pay every time

    if why := rlimits.of_this_process():
        raise InstanceError(f"the instance cannot start: {why}")
    path = socket_path(name)
    log_path = path.with_suffix(".log")
    command = [
        *(str(native("neat-keeper")), "--detach"),
        *("--dir", str(path.parent), "--name", name),
        *programs(options),
        *("--nic-bin", str(native_dir() / "neat-nic")),
        *("--python", sys.executable),
        *options.arguments(),
    ]
    with _open_log(log_path) as log:
        begin = log.tell()
        with _writing(log_path):
            log.write(f"--- neatsock {__version__}: {' '.join(command)}\n".encode())
        # Its child is the keeper, which nobody who waits for his children may find among them.
        parent = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,
        )
    try:
        return _started(parent, path, begin) or start(name, options)
    finally:
        parent.kill()
        parent.wait()


def _open_log(path: Path) -> BinaryIO:
    with _writing(path):
        if path.exists() and path.stat().st_size > LOG_MAX:
            path.replace(path.with_suffix(".log.old"))
        return open(path, "ab", buffering=0)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise InstanceError(f"cannot write {path}: {err.strerror}") from err


def _started(parent: subprocess.Popen[bytes], path: Path, begin: int) -> dict[str, Any] | None:
    """Status when all is ready; None: an instance that was just ending kept ours from starting."""
    log_path = path.with_suffix(".log")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        code = parent.poll()
        if code is not None and code != ALREADY_UP:
            raise InstanceError(_failure(f"neat-keeper ended with status {code}", log_path, begin))
        found = _ready(path)
        if found is not None:
            return found
        if code == ALREADY_UP and not _locked(path.with_suffix(".pid")):
            return None
        time.sleep(0.005)
    if parent.poll() is None:
        with contextlib.suppress(InstanceError):  # it may end by itself just now
            _await_end(_terminate(path.with_suffix(".pid")), path)
    raise InstanceError(_failure(f"not ready within {START_S:.0f} s", log_path, begin))


def _ready(path: Path) -> dict[str, Any] | None:
    try:
        found = ask(path, {"cmd": "status"}, 1.0)
    except OtherVersion:
        raise
    except InstanceError:
        return None
    return found if all(r["state"] == "ready" for r in found["replicas"]) else None


def _locked(path: Path) -> bool:
    import fcntl

    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as err:
        return err.errno == errno.EWOULDBLOCK
    return False


def _keeper_of(pid_file: Path) -> tuple[int, int]:
    """(pid, pidfd) of the keeper that holds this file, and of nobody else. OSError, ValueError."""
    pid = int(pid_file.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        # Looked at after pidfd_open(): a process that takes the pid later gets no signal.
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        args = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        named = os.fsencode(pid_file.stem) in args and os.fsencode(pid_file.parent) in args
        if comm != "neat-keeper" or not named or not _locked(pid_file):
            raise ProcessLookupError(errno.ESRCH, f"process {pid} is not its keeper")
    except BaseException:
        os.close(pidfd)
        raise
    return pid, pidfd


def _terminate(pid_file: Path) -> int:
    """SIGTERM to the keeper that holds this file, which ends its instance; its pid."""
    try:
        pid, pidfd = _keeper_of(pid_file)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        finally:
            os.close(pidfd)
    except (OSError, ValueError) as err:
        raise InstanceError(f"cannot end the instance by {pid_file}: {err}") from err
    return pid


def _failure(what: str, log_path: Path, begin: int) -> str:
    with open(log_path, "rb") as log:
        log.seek(begin)
        tail = log.read()[-4000:].decode("utf-8", "replace").splitlines()[-15:]
    # neatd ends an instance that cannot be as it was asked for; it says why.
    said = [line.split(" ", 3) for line in tail]  # date, time, who, what
    reasons = [words[3] for words in said if words[2:3] == ["neatd:"] and len(words) == 4]
    if reasons and tail[-1].endswith("the instance has ended"):
        return f"the instance did not start: {reasons[-1]}"
    lines = "".join(f"\n  | {line}" for line in tail)
    return f"the instance did not start: {what}. Its log ({log_path}) ends with:{lines}"


def _who_was_attached(count: int) -> str | None:
    were = "process was" if count == 1 else "processes were"
    return f"{count} {were} attached; their connections are reset" if count else None


def _ask_to_end(path: Path) -> tuple[int, str | None]:
    """(pid of the keeper, what is to be said of it). NotUp when there is none."""
    pid_file, why = path.with_suffix(".pid"), "neatd gives no answer"
    try:
        answer = ask(path, {"cmd": "down"}, DOWN_S)
        return int(answer["keeper"]["pid"]), _who_was_attached(int(answer.get("attached", 0)))
    except OtherVersion:
        return _terminate(pid_file), None
    except NotUp:
        if not _locked(pid_file):
            raise
        why = "neatd is not there"  # it has just died, or the instance is just starting
    except NoAnswer:
        pass
    pid = _terminate(pid_file)
    return pid, f"{why}; ended by SIGTERM to its keeper (process {pid})"


def stop(name: str) -> str | None:
    """End an instance; returns when its keeper is gone. NotUp when it is not up.

    A neatd that does not answer is done without after DOWN_S. The result says so, or how many
    processes were attached; None: nothing to be said.
    """
    path = socket_path(name)
    keeper, how = _ask_to_end(path)
    _await_end(keeper, path)
    return how


def _await_end(keeper: int, path: Path) -> None:
    try:
        pidfd = os.pidfd_open(keeper)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([pidfd], [], [], ASK_S)
    finally:
        os.close(pidfd)
    if not ready:
        raise InstanceError(
            f"instance {path.stem!r} does not end; its log is {path.with_suffix('.log')}"
        )


def check_program(path: str, kind: str) -> None:
    """InstanceError if `path` is no `kind` (as its --version says) of this version."""
    import subprocess

    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise InstanceError(f"cannot run {path} --version: {why}") from err
    words = done.stdout.split()
    if words[:2] != [kind, "ABI"]:
        raise InstanceError(f"{path} is no {kind}")
    if words[2:3] != [str(ABI_VERSION)]:
        raise InstanceError(
            f"{path} speaks version {' '.join(words[2:3])} of the protocol, not {ABI_VERSION}; "
            "end the instance (neatsock down) and start it again with the new neatsock"
        )


def upgrade(name: str, replica_bin: str | None) -> int:
    """Replace each replica by one of another program; returns their number when all are ready.

    Of replicas that are several processes `replica_bin` is neat-tcp; the others lie beside it.
    """
    multi = status(name)["components"] == "multi"
    program = Path(replica_bin or native("neat-tcp" if multi else "neat-replica"))
    check_program(str(program), "neat-tcp" if multi else "neat-replica")
    for kind in ("neat-ip", "neat-udp", "neat-filter") if multi else ():
        check_program(str(program.with_name(kind)), kind)
    path = os.path.abspath(replica_bin) if replica_bin else ""
    # By this number it is known as one that was asked for already.
    number = int.from_bytes(os.urandom(8), "little") | 1
    command = {"cmd": "upgrade", "replica_bin": path, "id": number}
    return int(ask_again(socket_path(name), command, UPGRADE_S)["upgraded"])


def hold(name: str) -> None:
    """Tell an --auto instance to stay until this process (whatever it becomes by exec) is gone."""
    ask(socket_path(name), {"cmd": "hold"})


SECONDS = ("fault_window_ms", "hang_ms", "stopped_ms", "quarantine_ms")


def shown(field: str, value: Any) -> str:
    """An option of StartOptions as it is written, for a person."""
    flag = f"--{field.removesuffix('_ms') if field in SECONDS else field}".replace("_", "-")
    if value is True:
        return flag
    if value is None or value is False or value == "":
        return f"no {flag}"
    if field in SECONDS:
        value = f"{value / 1000:g}"
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def check_same(name: str, options: StartOptions, found: dict[str, Any]) -> None:
    """InstanceError when what is up (its status) has not the options that are given."""
    there = found.get("options", {})
    for field in fields(options):
        given, have = getattr(options, field.name), there.get(field.name)
        if given is None or given is False or given == have:
            continue
        raise InstanceError(
            f"instance {name!r} is already up with {shown(field.name, have)}, not "
            f"{shown(field.name, given)}; end it first (neatsock down --name {name}) or use "
            "another --name"
        )


def ensure(name: str, options: StartOptions) -> None:
    """An instance is up and stays while this process lives; `options` are for starting one."""
    for _ in range(3):
        try:
            found = status(name)
        except NotUp:
            found = start(name, options)
        check_same(name, replace(options, auto=False), found)
        try:
            hold(name)
        except NotUp:
            continue  # it ended between the two questions
        return
    raise InstanceError(
        f"instance {name!r} keeps ending, see {socket_path(name).with_suffix('.log')}"
    )
