"""Each ordering rule (docs/rules.md)
removed in turn: a scenario that passes with the rule must fail without it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "neatsock/_native"
pytestmark = pytest.mark.timeout(300)  # thousands of processes, and a build before them
SENT = "neat_queue_pair.tx.tail"
# Rule, the store that comes too late, the one it had to precede, scenario, further options.
LATE = [
    ("W1 snd_max before the frame", "tcb.e.snd_max", SENT, "refused", ()),
    ("W2 payload before rcv_nxt", "payload", "tcb.e.rcv_nxt", "both_in", ()),
    ("W2 rcv_nxt before the ACK", "tcb.e.rcv_nxt", SENT, "echo_in", ()),
    ("L4 rcv_nxt before rx_head", "tcb.e.rcv_nxt", "neat_slot_pub.rx_head", "echo_in",
     ("--race-kill",)),
    ("L5 ring word before rcv_nxt", "tcb.rx_ring", "tcb.e.rcv_nxt", "both_in", ()),
    ("W4 snd_una before tx_una", "tcb.e.snd_una", "neat_slot_pub.tx_una", "both_out", ()),
    ("W6 birth before the accept queue", "tcb.e.state", "neat_slot_pub.accept_tail", "inbound", ()),
    ("W7' request before its SYN is retired", "tcp_request.state", "neat_queue_pair.rx.head",
     "full_queue", ()),
    ("W8 FIN committed before rcv_nxt counts it", "tcb.e.fin_rx_seq", "tcb.e.rcv_nxt",
     "passive_close", ()),
    ("W8 state before the FIN", "tcb.e.state", SENT, "both_close", ()),
    ("W14 journal before what it names", "arena_header.journal", "tcb.e.rcv_nxt", "echo_in", ()),
]  # fmt: skip


def failures(crash: Path, scenario: str, *options: str) -> int:
    result = subprocess.run(
        [crash, "run", *options, scenario], capture_output=True, text=True, check=False
    )
    row = json.loads(result.stdout)
    assert row["runs"] > 50
    return int(row["failures"])


@pytest.mark.parametrize(
    ("delay", "until", "scenario", "options"),
    [row[1:] for row in LATE],
    ids=[row[0] for row in LATE],
)
def test_without_the_order(
    crash: Path, delay: str, until: str, scenario: str, options: tuple[str, ...]
) -> None:
    assert failures(crash, scenario, "--delay", delay, "--until", until, *options) > 0


@pytest.mark.parametrize("scenario", ["reset", "unread"], ids=["W3 frames", "W15 commands"])
def test_retired_before_the_effects(crash: Path, scenario: str) -> None:
    assert failures(crash, scenario, "--retire-first") > 0


# Who moves while the successor starts has looked, and sleeps again.
DURING = ("--depth", "2", "--race-start", "--inner", "7", "--sample", "100")
# Rule of adoption, what forget.c takes away, scenario, further options.
FORGOTTEN = [
    ("W5 the advertised edge", "window", "window_ours", ()),
    ("W9 a look at everything", "look", "disconnect", ()),
    ("W9 a look behind the last word published", "look last", "disconnect", DURING),
    ("W9 a wake for everybody", "wake", "echo_in", ()),
]
# docs/decisions.md, 49, says why a successor can do without.
NOT_NEEDED = [
    ("W10 any window after a torn one", "wl", "window_asked"),
    ("W10 persist at once", "persist", "window_asked"),
    ("W12 links and free lists", "links", "many"),
]


@pytest.mark.parametrize(("what", "scenario", "options"), [row[1:] for row in FORGOTTEN],
                         ids=[row[0] for row in FORGOTTEN])  # fmt: skip
def test_a_successor_that_forgets(
    crash: Path, what: str, scenario: str, options: tuple[str, ...]
) -> None:
    assert failures(crash, scenario, "--forget", what, "--sample", "500", *options) > 0


@pytest.mark.parametrize("scenario", ["disconnect", "passive_close"])
def test_nobody_sleeps_on_words_of_the_predecessor(crash: Path, scenario: str) -> None:
    assert failures(crash, scenario, *DURING) == 0


@pytest.mark.parametrize(("what", "scenario"), [row[1:] for row in NOT_NEEDED],
                         ids=[row[0] for row in NOT_NEEDED])  # fmt: skip
def test_a_successor_does_not_rely_on(crash: Path, what: str, scenario: str) -> None:
    assert failures(crash, scenario, "--forget", what, "--sample", "500") == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize("program", ["neat-replica", "neat-tcp"])
def test_streaming_stores_only_for_payload(program: str) -> None:
    """W11b: no release store orders stores that pass the cache, so none may go into class E; those
    for payload end with a fence, before the index that follows."""
    if not shutil.which("objdump"):
        pytest.skip("objdump is not installed (apt install binutils)")
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", NATIVE / program],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    functions = re.split(r"^[0-9a-f]+ <(.+)>:$", text, flags=re.MULTILINE)[1:]
    for name, code in zip(functions[::2], functions[1::2], strict=True):
        streamed = [m.end() for m in re.finditer(r"\b(?:v?movnt|v?maskmov)\w*\b", code)]
        if streamed:
            assert name == "copy_payload", f"{program}: {name} streams"
            assert "sfence" in code[streamed[-1] :]
