"""An application whose processes are gone goes, whatever it wrote and said before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neatsock import abi

from ..waiting import wait_until
from .client import LIB, Client, Instance, Puppet
from .conftest import open_files

SEEDS = 24
STATES = [
    LIB.NEAT_PROC_FREE,
    LIB.NEAT_PROC_CLAIMED,
    LIB.NEAT_PROC_LIVE,
    LIB.NEAT_PROC_SWEPT,
    4,
    2**32 - 1,
]


def status(instance: Instance) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(instance.quick_status, "neatd answers")
    return found


def segments(pid: int) -> int:
    """How often a replica maps memory of applications."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:neat-seg_app")


@pytest.fixture
def left(instance: Instance) -> Iterator[Client]:
    """A bystander, the only one who is there in the end; nothing is kept for anybody else."""
    bystander = Client(instance.path)
    before = status(instance)
    neatd, pids = before["neatd"]["pid"], [r["pid"] for r in before["replicas"]]
    files, maps = open_files(neatd), [1] * len(pids)
    wait_until(lambda: [segments(pid) for pid in pids] == maps, "replicas map what it has")
    yield bystander

    def gone() -> bool:
        return [app["app_id"] for app in status(instance)["apps"]] == [bystander.app_id]

    try:
        wait_until(gone, "only the bystander is left")
    except AssertionError as err:
        raise AssertionError(f"{status(instance)['apps']}\n{instance.log()[-3000:]}") from err
    wait_until(lambda: [segments(pid) for pid in pids] == maps, "replicas unmap what it had")
    wait_until(lambda: open_files(neatd) <= files + 1, "neatd closes what it had")
    after = status(instance)
    assert (after["neatd"]["pid"], [r["pid"] for r in after["replicas"]]) == (neatd, pids)


def round_trip(instance: Instance) -> None:
    """neatd has handled all that was sent to it before."""
    Client(instance.path).close()


def test_a_program_that_dies_before_neatd_reads_its_first_word(
    instance: Instance, left: Client
) -> None:
    """Its ATTACH is still in the queue."""
    pid = status(instance)["neatd"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        code = (
            "import os, socket; from neatsock import abi; from tests.control.client import LIB\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            f"s.connect({str(instance.path)!r})\n"
            "s.send(abi.pack('struct neat_msg_attach', LIB.NEAT_MSG_ATTACH, 1, pid=os.getpid(),"
            " abi_size=abi.fingerprint(), comm=b'late'))\n"
        )
        subprocess.run([sys.executable, "-c", code], env=instance.env, check=True)
    finally:
        os.kill(pid, signal.SIGCONT)
    round_trip(instance)


def test_a_process_with_two_connections(
    instance: Instance, left: Client, puppets: list[Puppet]
) -> None:
    """It said CHILD again: the second one is its own, the first one is nobody's."""
    code = (
        "import socket\n"
        "from tests.control.test_hostile import say_child\n"
        "pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]\n"
        "for ours, theirs in pairs: say_child(c, theirs.fileno()); theirs.close()\n"
    )
    for closed in ("[]", "pairs[:1]", "pairs[1:2]", "pairs[2:]", "pairs"):
        puppet = Puppet(instance, code + f"for ours, _ in {closed}: ours.close()")
        puppets.append(puppet)
        puppet.step()
        round_trip(instance)
        puppet.kill()


def test_a_child_that_two_neatds_hear_of_has_one_connection(
    instance: Instance, left: Client, puppets: list[Puppet]
) -> None:
    """The first one dies before it takes the message off its queue; the second has it already."""
    puppet = Puppet(
        instance,
        "import socket\n"
        "from tests.control.test_hostile import say_child\n"
        "ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "c.new_sock(1)\n"
        "for _ in range(2): say_child(c, theirs.fileno())\n"
        "theirs.close(); c.sock.close(); c.sock = ours; ours.settimeout(20)\n"
        "say([c.bind(1) > 0 for _ in range(50)])",
    )
    puppets.append(puppet)
    assert all(puppet.step())
    puppet.kill()


def test_an_image_whose_entry_names_another_process(
    instance: Instance, left: Client, puppets: list[Puppet]
) -> None:
    """It writes a child's pid there, closes its connection, and the child attaches."""
    puppet = Puppet(
        instance,
        "read, write = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    c.sock.close(); os.read(read, 3)\n"
        "    mine = Client(Path(sys.argv[1]), attach=False)\n"
        "    try: mine.attach(app_id=c.app_id, proc=0, instance=c.instance)\n"
        "    except Exception as err: say(repr(err))\n"
        "    else: say('attached')\n"
        "    os._exit(0)\n"
        "c.app.at.procs[0].pid.v = child\n"
        "c.new_sock(1); c.sock.close()\n"
        "os.write(write, b'now')\n"
        "os.waitpid(child, 0)",
    )
    puppets.append(puppet)
    assert puppet.step() == "attached"
    puppet.go_on()


def strangers(instance: Instance) -> list[int]:
    """Pids of processes that live on, and have nothing to do with a program."""
    found = status(instance)
    ours = [found["neatd"]["pid"], found["keeper"]["pid"], found["replicas"][0]["pid"]]
    return [*ours, found["standby"]["pid"] or 1, found["nic"]["pid"] or 1, 1, 2, os.getpid()]


GARBAGE = """
import random
from tests.control.test_gone import scribble
rng = random.Random({seed})
child = os.fork()
if child == 0:
    os._exit(0)
scribble(rng, c, [*{strangers}, child, os.getpid()])
c.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_FORKED))
for sock in range(1, 4):
    try: c.listen(sock)
    except Exception: break
scribble(rng, c, [*{strangers}, child, os.getpid()])
"""


def scribble(rng: random.Random, client: Client, pids: list[int]) -> None:
    """Garbage, of which much is nearly right, into all that an application may write."""
    words = [0, 1, 2, 3, 5, 2**31, 2**32 - 1, LIB.NEAT_PROCS_MAX, LIB.NEAT_SOCKS_MAX - 1]

    def word() -> int:
        return rng.choice([rng.getrandbits(32), rng.choice(words), rng.choice(pids)])

    for index in rng.sample(range(LIB.NEAT_PROCS_MAX), 60) + [0] * (rng.random() < 0.7):
        entry = client.app.at.procs[index]
        entry.pid.v = rng.choice([rng.choice(pids), rng.choice(pids), word()])
        entry.state.v = rng.choice(STATES)
        entry.parent.v, entry.fd_high.v = word(), word()
        for _ in range(20):
            client.set_fd(rng.randrange(0, 65536), word(), word() & 0xFFFF, index)
    for _ in range(300):
        record = client.app.at.socks[rng.choice([1, 2, 3, rng.randrange(LIB.NEAT_SOCKS_MAX)])]
        record.state.v, record.gen.v = rng.randrange(7), word()
        record.refs.v = rng.choice([word(), 1, abi.refs_closing(rng.randrange(257))])
        record.slot, record.slot_gen, record.replica = word(), word(), rng.choice([0, 1, word()])
        sub = record.sub[rng.randrange(LIB.NEAT_REPLICAS_MAX)]
        sub.slot, sub.gen = word(), word()
    for replica in (0, 1):
        channels = client.channels(replica)
        for _ in range(20):
            channels.open[rng.randrange(LIB.NEAT_PROCS_MAX)].v = word()
            channel = channels.ch[rng.randrange(LIB.NEAT_PROCS_MAX)]
            channel.cmd_tail.v, channel.ev_head.v = rng.randrange(9), word()
            for i in range(8):
                op, slot = rng.randrange(7), rng.choice([1, 2, 32768, 32769, word()])
                channel.cmd[i].v = op << 56 | word() << 32 & 0xFFFFFF << 32 | slot
        channels.change.v += 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_program_that_leaves_garbage(
    instance: Instance, left: Client, puppets: list[Puppet], seed: int
) -> None:
    puppet = Puppet(instance, GARBAGE.format(seed=seed, strangers=strangers(instance)))
    puppets.append(puppet)
    puppet.step()
    puppet.kill()


# ---- killed inside fork() ----

FORKING = """
import signal
from tests.control.test_gone import claim
from tests.waiting import wait_until
c.new_sock(1)
listening = c.listen(1).status
read, write = os.pipe()
if os.fork() == 0:
    # Without a connection of its own, it forks; {child} lives when it is killed.
    c.proc = 1
    c.app.at.procs[1].pid.v, c.app.at.procs[1].state.v = os.getpid(), LIB.NEAT_PROC_LIVE
    claim(c, 2)
    child = os.fork() if {child} else 0
    if {child} and child == 0:
        signal.pause()
    os.write(write, b"%d\\n" % child)
    os.kill(os.getpid(), 9)
dead, child = os.wait()[0], int(os.read(read, 20))
if {taken}:  # the dead one's entry is another one's by now
    c.app.at.procs[1].pid.v = os.getpid()
c.send(abi.pack("struct neat_msg_header", LIB.NEAT_MSG_FORKED))
say(child)
"""


def claim(client: Client, entry: int) -> None:
    """What fork() does before there is a child: an entry of ours, in which socket 1 is open."""
    client.set_fd(7, 1, proc=entry)
    client.app.at.socks[1].refs.v += 1
    procs = client.app.at.procs
    procs[entry].parent.v, procs[entry].fd_high.v = client.proc, 8
    procs[entry].pid.v, procs[entry].state.v = os.getpid(), LIB.NEAT_PROC_CLAIMED


def test_killed_inside_fork_before_there_is_a_child(
    instance: Instance, left: Client, puppets: list[Puppet]
) -> None:
    puppet = Puppet(
        instance,
        FORKING.format(child=0, taken=0)
        + "wait_until(lambda: c.app.at.procs[2].state.v == LIB.NEAT_PROC_FREE, 'it is free')\n"
        "say([c.app.at.procs[2].state.v, c.app.at.socks[1].refs.v])",
    )
    puppets.append(puppet)
    puppet.step()
    puppet.go_on()
    assert puppet.step() == [LIB.NEAT_PROC_FREE, 1]
    puppet.kill()


@pytest.mark.parametrize("taken", [0, 1])
def test_killed_inside_fork_and_the_child_has_not_run_yet(
    instance: Instance, left: Client, puppets: list[Puppet], taken: int
) -> None:
    """It keeps what it inherited until it is dead, too; whoever else comes and goes."""
    puppet = Puppet(
        instance,
        FORKING.format(child=1, taken=taken) + "if os.fork() == 0:\n"
        "    c.child(3).bind(9); os._exit(0)\n"
        "os.wait()\n"
        "c.send(abi.pack('struct neat_msg_header', LIB.NEAT_MSG_FORKED))\n"
        "for _ in range(20): Client(Path(sys.argv[1])).close()\n"
        "say([c.app.at.procs[2].state.v, c.app.at.socks[1].refs.v])\n"
        "wait_until(lambda: c.app.at.procs[2].state.v == LIB.NEAT_PROC_FREE, 'it is free')\n"
        "say([c.app.at.procs[2].state.v, c.app.at.socks[1].refs.v])",
    )
    puppets.append(puppet)
    child = puppet.step()
    puppet.go_on()
    assert puppet.step() == [LIB.NEAT_PROC_CLAIMED, 2]
    os.kill(child, signal.SIGKILL)
    puppet.go_on()
    assert puppet.step() == [LIB.NEAT_PROC_FREE, 1]
    puppet.kill()
