"""What a program does while its replica stands still is done when it goes on."""

from __future__ import annotations

import subprocess
import sys

from .rig import Rig

# The replica is stopped and continued by the program itself: it knows when.
PROGRAM = """
import errno, os, select, signal, socket, sys
replica = int(sys.argv[1])
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen(64)
socket.create_connection(a.getsockname()).close(); a.accept()  # a replica that was used
def begun():
    s = socket.socket(); s.setblocking(False)
    assert s.connect_ex(a.getsockname()) == errno.EINPROGRESS
    return s
def outcome(s):
    p = select.poll(); p.register(s, select.POLLOUT)
    return p.poll(10000)[0][1], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
"""
# SYN_SENT is 2 (tcp_states.h).
ENDS = """
os.kill(replica, signal.SIGSTOP)
begun().close()
kept = [begun() for _ in range(3)]
kept.pop(1).close()
kept.append(begun())
states = {s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[0] for s in kept}
os.kill(replica, signal.SIGCONT)
print(states, {outcome(s) for s in kept})
names = {s.getsockname() for s in kept}
a.settimeout(10)
while names:
    names.discard(a.accept()[1])
"""


def run(rig: Rig, program: str) -> str:
    replica = str(rig.pids()["replica0"])
    done = rig.world.run(sys.executable, "-c", PROGRAM + program, replica, stdin=subprocess.DEVNULL)
    return done.stdout


def test_a_connection_that_was_closed_at_once_does_not_end_the_next_one(rig1: Rig) -> None:
    """Both have the same slot, were it up to the status word, which the replica has not changed."""
    for _ in range(3):
        assert run(rig1, ENDS) == "{2} {(4, 0)}\n"
