"""neatsock up | down | status | upgrade | filter | pcap | scale | run: the command line."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import shutil
import signal
import stat
import struct
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from neatsock import __version__, instance, ranges
from neatsock.capture import capture
from neatsock.filter import SYNTAX, RuleError
from neatsock.filter import parse as parse_rule
from neatsock.instance import InstanceError, StartOptions

COMMANDS = ("up", "down", "status", "upgrade", "filter", "pcap", "scale", "run")
PT_INTERP = 3
EM_OF_CLASS = {1: ("<I", 28, "<H", 42, "<H", 44), 2: ("<Q", 32, "<H", 54, "<H", 56)}


class Refusal(Exception):
    """Why a program cannot run on neatsock; exit status as a shell would give."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def is_static(path: Path) -> bool:
    """True for an ELF file without an interpreter: LD_PRELOAD has no effect on it."""
    with open(path, "rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in EM_OF_CLASS or head[5] != 1:
            return False
        fmt, at, size_fmt, size_at, count_fmt, count_at = EM_OF_CLASS[head[4]]
        offset = struct.unpack_from(fmt, head, at)[0]
        size = struct.unpack_from(size_fmt, head, size_at)[0]
        count = struct.unpack_from(count_fmt, head, count_at)[0]
        file.seek(offset)
        table = file.read(size * count)
    kinds = [struct.unpack_from("<I", table, i)[0] for i in range(0, len(table) - 3, size or 1)]
    return PT_INTERP not in kinds


def shebang(path: Path) -> str | None:
    """The interpreter that a script names."""
    with open(path, "rb") as file:
        line = file.read(256).split(b"\n", 1)[0]
    if not line.startswith(b"#!"):
        return None
    words = line[2:].split()
    return os.fsdecode(words[0]) if words else None


def _not_found(name: str) -> Refusal:
    """As a shell does it: 126 for what is there and cannot be executed, 127 for what is not."""
    places = os.get_exec_path() if "/" not in name else [""]
    there = [path for place in places if os.path.lexists(path := os.path.join(place, name))]
    if "/" in name and there and os.path.isdir(name):
        return Refusal(f"{name} is a directory", 126)
    files = [path for path in there if os.path.isfile(path)]
    if files:
        return Refusal(f"{files[0]} is not executable", 126)
    return Refusal(f"{name}: command not found", 127)


def has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:  # none, or a file system without attributes
        return False


def check_program(name: str) -> str:
    """Path of a program that neatsock can serve. Refusal says why not."""
    found = shutil.which(name)
    if found is None:
        raise _not_found(name)
    path = Path(found)
    try:
        mode = path.stat().st_mode
        interpreter = shebang(path)
        target = Path(interpreter) if interpreter else path
        static = target.exists() and is_static(target)
    except OSError as err:  # unreadable: exec and the loader decide
        if err.errno is None:
            raise
        return found
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise Refusal(
            f"{found} is setuid or setgid: the dynamic linker ignores LD_PRELOAD for it; "
            "run it as the user it switches to",
            126,
        )
    # capabilities(7): AT_SECURE (ld.so(8)) by file capabilities only if the real user is not root.
    if os.getuid() != 0 and has_capabilities(target):
        raise Refusal(
            f"{target} has file capabilities: the dynamic linker ignores LD_PRELOAD for it; "
            "run a copy without them (cp leaves them behind), or run it as root",
            126,
        )
    if static:
        raise Refusal(
            f"{target} is statically linked: nothing can be preloaded into it; "
            "use a dynamically linked build",
            126,
        )
    return found


def program_environment(name: str) -> dict[str, str]:
    """The environment under which a program is on neatsock. Refusal says why there is none."""
    env = dict(os.environ)
    library = str(instance.native("libneatsock.so"))
    if " " in library or ":" in library:
        raise Refusal(
            f"{library} cannot be preloaded: the dynamic linker splits LD_PRELOAD at spaces and "
            "colons; install neatsock in a directory whose path has neither",
            126,
        )
    others = [p for p in env.get("LD_PRELOAD", "").replace(":", " ").split() if p != library]
    env["LD_PRELOAD"] = ":".join([library, *others])
    env["NEATSOCK_SOCKET"] = str(instance.socket_path(name))
    return env


def run(name: str, options: StartOptions, command: list[str]) -> None:
    """Become `command`. Returns never; Refusal or InstanceError before."""
    path = check_program(command[0])
    env = program_environment(name)
    instance.ensure(name, options)
    try:
        os.execve(path, command, env)
    except OSError as err:
        raise Refusal(f"cannot run {path}: {err.strerror}", 126) from err


def default_name() -> str:
    return os.environ.get("NEATSOCK_NAME", "default")


def _interface(text: str) -> str:
    try:
        found = ipaddress.IPv4Interface(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address of IPv4; write e.g. 10.1.0.2/24"
        ) from None
    if found.network.prefixlen in (0, 32):
        raise argparse.ArgumentTypeError(f"{text} names no network; write e.g. 10.1.0.2/24")
    return str(found)


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address of IPv4") from None


def _ifname(text: str) -> str:
    # dev_valid_name() of the kernel; % would ask it to choose a number.
    if not 1 <= len(text.encode()) <= 15 or text in (".", "..") or set(text) & set("/:% \t\n"):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the name of a network device")
    return text


def _wire(text: str) -> str:
    path = os.path.abspath(text)
    if len(os.fsencode(path)) > instance.SUN_PATH:
        raise argparse.ArgumentTypeError(f"{path} is too long for a socket")
    return path


# tc-netem's notation -> (field of struct neat_wire, its unit).
PPM = {"%": 10_000.0}
MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6}
BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
IMPAIRMENTS = {
    "loss": ("loss_ppm", PPM),
    "reorder": ("reorder_ppm", PPM),
    "duplicate": ("duplicate_ppm", PPM),
    "corrupt": ("corrupt_ppm", PPM),
    "delay": ("delay_us", MICROSECONDS),
    "jitter": ("jitter_us", MICROSECONDS),
    "rate": ("rate_bps", BITS),
    "seed": ("seed", {"": 1.0}),
}


def _quantity(text: str, units: dict[str, float]) -> int:
    """`text` in the unit of a field. ArgumentTypeError for a wrong unit or number."""
    unit = max((u for u in units if text.endswith(u)), key=len, default=None)
    if unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} ends with none of {', '.join(units)}")
    value = ranges.number(text.removesuffix(unit)) * units[unit]
    if not 0 <= value < (2**53 if units is BITS else 2**32):
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    if units is PPM and value > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is more than 100%")
    return round(value)


def _impair(text: str) -> str:
    out = []
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            at, units = IMPAIRMENTS[name]
            out.append(f"{at}={_quantity(value, units)}")
        except KeyError:
            known = ", ".join(IMPAIRMENTS)
            raise argparse.ArgumentTypeError(f"{name!r} is none of {known}") from None
        except argparse.ArgumentTypeError as err:
            raise argparse.ArgumentTypeError(f"{item}: {err}") from err
    return ",".join(out)


def _start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replicas",
        type=ranges.REPLICAS,
        metavar="N",
        help="number of TCP/IP stacks, default: half of the cores",
    )
    parser.add_argument(
        "--spin-us",
        type=ranges.SPIN_US,
        metavar="US",
        help="how long to spin before sleeping, default 50",
    )
    parser.add_argument(
        "--time-wait-ms", type=ranges.TIME_WAIT_MS, metavar="MS", help="TIME_WAIT, default 60000"
    )
    parser.add_argument(
        "--components",
        choices=("single", "multi"),
        help="a replica is one process (default), or four: tcp, udp, filter, ip",
    )


def _recovery_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode",
        choices=("stateful", "stateless"),
        help="what becomes of a dead replica's connections: they go on (default), or are reset",
    )
    parser.add_argument(
        "--faults",
        type=ranges.FAULTS,
        metavar="K",
        help="so many faults of a replica within --fault-window and its connections are reset "
        "instead, default 5",
    )
    parser.add_argument(
        "--fault-window",
        type=ranges.FAULT_WINDOW,
        dest="fault_window_ms",
        metavar="SECONDS",
        help="for --faults and --quarantine, default 10",
    )
    parser.add_argument(
        "--hang",
        type=ranges.PATIENCE,
        dest="hang_ms",
        metavar="SECONDS",
        help="a replica that uses so much CPU time without a sign of life is replaced, default "
        "0.5; 0 = never",
    )
    parser.add_argument(
        "--stopped",
        type=ranges.PATIENCE,
        dest="stopped_ms",
        metavar="SECONDS",
        help="a replica that was stopped (SIGSTOP) for so long is replaced, default 1; 0 = never",
    )
    parser.add_argument(
        "--quarantine",
        type=ranges.QUARANTINE,
        dest="quarantine_ms",
        metavar="SECONDS",
        help="after the second fault within --fault-window a replica runs the quarantine build, "
        "until so much time passed without another one, default 60",
    )
    parser.add_argument(
        "--rerandomize",
        type=ranges.RERANDOMIZE_S,
        metavar="SECONDS",
        help="every so many seconds the next replica is replaced, which renews its address layout",
    )


def _scale_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replicas-max",
        type=ranges.REPLICAS,
        metavar="M",
        help="the most that neatsock scale can ask for, default 4 or N",
    )
    parser.add_argument(
        "--scale",
        choices=("manual", "auto"),
        help="auto: between N and M replicas, as the load asks; default manual (neatsock scale)",
    )
    parser.add_argument(
        "--scale-up-at",
        type=ranges.LOAD,
        metavar="PERCENT",
        help="mean load for one more, default 75",
    )
    parser.add_argument(
        "--scale-down-at",
        type=ranges.LOAD,
        metavar="PERCENT",
        help="load that one fewer would have, default 40",
    )
    parser.add_argument("--pin", action="store_true", help="one core for each replica, in turns")


def _uplink_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--tap", type=_ifname, metavar="IFNAME", help="network by this TAP device, made if missing"
    )
    where.add_argument(
        "--wire", type=_wire, metavar="PATH", help="network with the instance that names this too"
    )
    parser.add_argument(
        "--address", type=_interface, metavar="A.B.C.D/N", help="ours on that network"
    )
    parser.add_argument(
        "--gateway", type=_address, metavar="A.B.C.D", help="way back to peers of other networks"
    )
    parser.add_argument(
        "--impair",
        type=_impair,
        metavar="WHAT=HOW,...",
        help="what a --wire does to frames we send, e.g. loss=1%%,delay=2ms,seed=7; also "
        + ", ".join(n for n in IMPAIRMENTS if n not in ("loss", "delay", "seed")),
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neatsock",
        description="Run unchanged programs on isolated, restartable TCP/IP stacks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"neatsock {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start an instance", allow_abbrev=False)
    down = commands.add_parser("down", help="end an instance", allow_abbrev=False)
    status = commands.add_parser("status", help="show an instance", allow_abbrev=False)
    upgrade = commands.add_parser(
        "upgrade",
        help="replace each replica's program under open connections",
        description="Starts each replica anew, one after another: from the file it was started "
        "from, as it is now, or from another one. Connections go on.",
        allow_abbrev=False,
    )
    upgrade.add_argument("--replica-bin", metavar="PATH", help="another neat-replica")
    run_ = commands.add_parser(
        "run",
        help="run a program on an instance; starts one if none is up",
        usage="neatsock run [-h] [--name NAME] [--replicas N] [--spin-us US] [--time-wait-ms MS] "
        "[--components single|multi] [--] PROGRAM [ARGUMENT ...]",
        allow_abbrev=False,
    )
    filters = commands.add_parser("filter", help="rules of the packet filter", allow_abbrev=False)
    _filter_arguments(filters)
    pcap = commands.add_parser("pcap", help="capture what passes the NIC", allow_abbrev=False)
    _pcap_arguments(pcap)
    scale = commands.add_parser(
        "scale", help="more replicas, or fewer, while connections go on", allow_abbrev=False
    )
    scale.add_argument(
        "replicas", type=ranges.REPLICAS, metavar="K", help="so many are to take new connections"
    )
    for sub in (up, down, status, upgrade, filters, pcap, scale, run_):
        sub.add_argument("--name", default=default_name(), help="instance, default 'default'")
    for sub in (up, run_):
        _start_arguments(sub)
    _recovery_arguments(up)
    _scale_arguments(up)
    _limit_arguments(up)
    _uplink_arguments(up)
    up.add_argument("--auto", action="store_true", help="end after the last attached program")
    status.add_argument("--json", action="store_true", help="machine-readable")
    run_.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _pcap_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Frames of one replica's queue pair, as the replica sees them, into a pcapng file, until "
        "Ctrl-C. Local connections stay inside their replica and pass no queue of the NIC."
    )
    parser.add_argument(
        "--replica", type=ranges.REPLICA, default=0, metavar="I", help="which, default 0"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--rx", dest="dir", action="store_const", const="rx", help="only to it")
    way.add_argument("--tx", dest="dir", action="store_const", const="tx", help="only from it")
    parser.add_argument(
        "-w", dest="file", type=Path, metavar="FILE", help="default replicaI.pcapng"
    )
    parser.add_argument("--seconds", type=ranges.seconds, metavar="S", help="end after this time")
    parser.set_defaults(dir="both")


def _filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The first rule that matches a packet decides; none lets it pass. Rules are stateless: "
        f"replies need rules that pass them too. A rule: {SYNTAX}; WHERE: any|ADDRESS[/BITS] "
        "[port N[-M]], or only port N[-M]. Reject answers as Linux does: RST or port unreachable."
    )
    do = parser.add_subparsers(dest="do", required=True, metavar="add|delete|list|flush")
    add = do.add_parser("add", help="add a rule at the end", allow_abbrev=False)
    add.add_argument("--at", type=int, metavar="N", help="make it number N")
    add.add_argument(
        "--replica",
        type=int,
        action="append",
        metavar="N",
        help="only replica N obeys it (may be repeated), default: all, also those to come",
    )
    add.add_argument("rule", nargs="+", metavar="WORD", help=SYNTAX)
    delete = do.add_parser("delete", help="remove rule N", allow_abbrev=False)
    delete.add_argument("number", type=int, metavar="N", help="as neatsock filter list shows it")
    show = do.add_parser(
        "list", help="all rules and what they met since the last change of any", allow_abbrev=False
    )
    show.add_argument("--json", action="store_true", help="machine-readable")
    flush = do.add_parser("flush", help="remove all rules", allow_abbrev=False)
    for sub in (add, delete, show, flush):
        sub.add_argument("--name", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    """What one application may hold; see docs/decisions.md 52."""
    limits = parser.add_argument_group("limits, so that no program takes all from the others")
    limits.add_argument(
        "--apps-max",
        type=ranges.APPS,
        metavar="N",
        help=f"programs at the same time, default {ranges.APPS_MOST}",
    )
    limits.add_argument(
        "--app-sockets",
        type=ranges.APP_SOCKETS,
        metavar="N",
        help="connections and listeners of a program in each replica, default: as many as are "
        "left for others",
    )
    limits.add_argument(
        "--app-ports",
        type=ranges.APP_PORTS,
        metavar="N",
        help="sockets of a program that hold a port, default 1024",
    )
    limits.add_argument(
        "--app-buffers",
        type=ranges.APP_BUFFERS_MIB,
        metavar="MIB",
        help="by which all buffers of a program may grow in each replica, default: a 16th of the "
        "memory, divided by the replicas",
    )


def start_options(args: argparse.Namespace, auto: bool) -> StartOptions:
    """InstanceError for options that do not go together."""
    given: dict[str, Any] = {f.name: getattr(args, f.name, None) for f in fields(StartOptions)}
    options = StartOptions(**given | {"auto": auto})
    most = options.replicas_max
    if most is not None and most < (options.replicas or instance.default_replicas()):
        raise Refusal(f"--replicas-max {most} is fewer than --replicas", 2)
    _check_uplink(options)
    if options.rerandomize and options.mode == "stateless":
        raise Refusal("--rerandomize would reset connections in --mode stateless", 2)
    _check_policy(options)
    return options


def _check_policy(options: StartOptions) -> None:
    up_at = options.scale_up_at or ranges.UP_AT
    down_at = options.scale_down_at or ranges.DOWN_AT
    if down_at > up_at:
        raise Refusal(
            f"--scale-down-at {down_at:g} is more than --scale-up-at {up_at:g}: replicas would "
            "come and go all the time",
            2,
        )


def _check_uplink(options: StartOptions) -> None:
    if options.uplink is None:
        if options.address or options.gateway or options.impair:
            raise Refusal("--address, --gateway and --impair need --tap IFNAME or --wire PATH", 2)
        return
    if options.address is None:
        raise Refusal(f"--{options.uplink} needs an address of ours: --address A.B.C.D/N", 2)
    if options.impair and not options.wire:
        raise Refusal("--impair is for --wire; for a TAP device see tc-netem(8)", 2)
    ours = ipaddress.IPv4Interface(options.address)
    if ours.is_loopback or ours.is_multicast or ours.is_unspecified:
        raise Refusal(f"--address {ours} is no address of a host on a network", 2)
    if options.gateway and ipaddress.IPv4Address(options.gateway) not in ours.network:
        raise Refusal(f"--gateway {options.gateway} is not in {ours.network}", 2)


def _up(args: argparse.Namespace) -> int:
    options = start_options(args, args.auto)
    try:
        found = instance.status(args.name)
    except instance.NotUp:
        found = instance.start(args.name, options)
        word = "up"
    else:
        word = "already up"
    # Also after a start: somebody else's, at the same moment, may have won.
    instance.check_same(args.name, options, found)
    count = found["placement"]["replicas"]
    at = f", {found['nic']['address']} on {found['nic']['uplink']}" if options.uplink else ""
    say(f"instance {args.name!r} is {word}: {count} replica{'s' if count > 1 else ''}{at}")
    return 0


def _scale(args: argparse.Namespace) -> int:
    states = [r["state"] for r in instance.scale(args.name, args.replicas)["replicas"]]
    draining = states.count("draining")
    tail = f", {draining} draining" if draining else ""
    say(f"instance {args.name!r}: {states.count('ready')} ready{tail}")
    return 0


def _down(args: argparse.Namespace) -> int:
    if how := instance.stop(args.name):
        say(f"instance {args.name!r}: {how}")
    return 0


def _status(args: argparse.Namespace) -> int:
    found = instance.status(args.name)
    if args.json:
        print(json.dumps(found))
        return 0
    print(describe(found))
    return 0


def _upgrade(args: argparse.Namespace) -> int:
    count = instance.upgrade(args.name, args.replica_bin)
    say(f"instance {args.name!r}: {count} replica{'s' if count > 1 else ''} replaced")
    return 0


def _network(nic: dict[str, Any]) -> str:
    return f" ({nic['address']} on {nic['uplink']})" if "uplink" in nic else ""


def _deaths(replica: dict[str, Any]) -> str:
    """What happened to a replica, for a person."""
    took, strikes = replica["recovery_ms"], replica["strikes"]
    times = "once" if replica["restarts"] == 1 else f"{replica['restarts']} times"
    cause = f"after {replica['last_death_cause']} ({replica['last_death']})"
    return (
        f"restarted {times}, last "
        + ("as planned, " if replica["last_death"] == "planned" else f"{cause}, ")
        + (f"ready {took:.1f} ms later" if took is not None else "not ready yet")
        + (f", {strikes} strike{'s' if strikes > 1 else ''}" if strikes else "")
        + (", stateless because of them" if replica["fell_back"] else "")
        + (", runs the quarantine build" if replica["build"] == "quarantine" else "")
    )


def describe(found: dict[str, Any]) -> str:
    """Status for a person."""
    lines = [
        f"instance {found['name']}: up {found['uptime_s']:.0f} s, keeper {found['keeper']['pid']}, "
        f"neatd {found['neatd']['pid']}, nic {found['nic']['pid'] or '-'}" + _network(found["nic"]),
        *([f"nic: {found['nic']['error']}"] if "error" in found["nic"] else []),
        f"mode {found['mode']}, standby {found['standby']['pid'] or '-'}",
        f"{'replica':>7} {'pid':>8} {'state':>9} {'connections':>12} {'accepted':>10} "
        f"{'segments in':>12} {'segments out':>13} {'cpu s':>8} {'core':>4}",
    ]
    for r in found["replicas"]:
        lines.append(
            f"{r['index']:>7} {r['pid'] or '-':>8} {r['state']:>9} {r['connections']:>12} "
            f"{r['accepted']:>10} {r['segments_in']:>12} {r['segments_out']:>13} "
            f"{r['cpu_s']:>8.2f} {r['cpu']:>4}"
        )
        lines += [
            f"{part['name']:>7} {part['pid'] or '-':>8} {part['state']:>9} "
            f"{part['packets']} packets, {part['drops']} dropped"
            for part in r["components"]
        ]
    lines += [f"replica {r['index']}: {_deaths(r)}" for r in found["replicas"] if r["last_death"]]
    for app in found["apps"]:
        ports = ", ".join(f"{p['address']}:{p['port']}" for p in app["ports"] if p["listening"])
        pids = " ".join(str(pid) for pid in app["pids"])
        lines.append(f"{app['name']} (pid {pids})" + (f" listens on {ports}" if ports else ""))
    return "\n".join(lines)


def _filter(args: argparse.Namespace) -> int:
    command: dict[str, Any] = {"cmd": "filter", "do": args.do, "id": secrets.randbits(31) + 1}
    if args.do == "add":
        try:
            command |= {"rule": str(parse_rule(" ".join(args.rule))), "number": args.at}
            command["replicas"] = args.replica
        except RuleError as err:
            raise Refusal(str(err), 2) from err
    elif args.do == "delete":
        command["number"] = args.number
    rules = instance.ask_again(instance.socket_path(args.name), command)["rules"]
    if args.do == "list" and args.json:
        print(json.dumps(rules))
    elif args.do == "list":
        for rule in rules:
            counts = f"{rule['packets']:>12} packets {rule['bytes']:>15} bytes"
            whose = "".join(f"--replica {replica} " for replica in rule["replicas"] or ())
            print(f"{rule['number']:>3} {counts}  {whose}{rule['rule']}")
    return 0


def _pcap(args: argparse.Namespace) -> int:
    path = args.file or Path(f"replica{args.replica}.pcapng")
    try:
        whole = capture(args.name, args.replica, args.dir, path, args.seconds)
    except KeyboardInterrupt:
        whole = True
    say(f"{path}: {path.stat().st_size} bytes")
    if not whole:
        raise InstanceError("the NIC or its control daemon ended, and the capture with it")
    return 0


def _run(args: argparse.Namespace) -> int:
    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not command:
        raise Refusal(
            "no program given; usage: neatsock run [OPTIONS] [--] PROGRAM [ARGUMENT ...]", 2
        )
    if args.program[0] != "--" and command[0].startswith("-"):
        raise Refusal(f"unknown option {command[0]}; see neatsock run --help", 2)
    run(args.name, start_options(args, auto=True), command)
    return 0


def say(text: str) -> None:
    print(f"neatsock: {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `neatsock` command."""
    args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    handlers = {
        "up": _up,
        "down": _down,
        "status": _status,
        "upgrade": _upgrade,
        "filter": _filter,
        "pcap": _pcap,
        "scale": _scale,
        "run": _run,
    }
    try:
        code = handlers[args.command](args)
        if sys.stdout:  # None if the descriptor is closed
            sys.stdout.flush()  # here, where its reader may be gone, and not at exit
        return code
    except Refusal as refusal:
        say(str(refusal))
        return refusal.code
    except InstanceError as err:
        say(str(err))
        return 1
    except BrokenPipeError:
        # Nobody reads our output any more: as if by SIGPIPE, without a word at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
