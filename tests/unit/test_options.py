"""Options: one table of numbers, and what a running instance is compared with."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from neatsock import cli, ranges
from neatsock.instance import InstanceError, StartOptions, check_same, shown
from neatsock.replicas import neatd

ROOT = Path(__file__).resolve().parents[2]


def options(*given: str) -> StartOptions:
    args = cli.build_parser().parse_args(["up", *given])
    return cli.start_options(args, args.auto)


def running(*given: str) -> dict[str, Any]:
    arguments = options(*given).arguments()
    return {"options": neatd.parse(["--dir", "/d", "--name", "n", *arguments]).asked}


NUMBERS = {
    "--spin-us": ("-5", "99999999999"),
    "--time-wait-ms": ("-1", "0", "99999999999"),
    "--replicas": ("0", "17", "1.5"),
    "--faults": ("0", "65"),
    "--fault-window": ("-1", "0", "nan", "1e9"),
    "--hang": ("-0.1", "inf"),
    "--rerandomize": ("0", "1000001"),
    "--scale-up-at": ("0", "101", "x"),
    "--apps-max": ("0", "161"),
    "--app-sockets": ("0", "65536"),
}


@pytest.mark.parametrize("flag, text", [(f, t) for f, texts in NUMBERS.items() for t in texts])
def test_a_number_out_of_range_is_refused_in_words(
    flag: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["up", f"{flag}={text}"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"{flag}: .*\b(is not .* to |is no )", said), said
    assert "_" not in said and "Whole" not in said


def test_neatd_takes_every_number_that_is_let_through() -> None:
    """The ends of every range fit where neatd puts them."""
    from neatsock import abi

    for number in (ranges.SPIN_US, ranges.TIME_WAIT_MS, ranges.BATCH, ranges.APP_SOCKETS):
        for value in (number.low, number.high):
            abi.pack("struct neat_msg_r_config", 1, spin_us=value, time_wait_ms=value, batch=value)
    kib = ranges.APP_BUFFERS_MIB.high << 10
    abi.pack("struct neat_msg_r_config", 1, app_buffers_kib=kib)
    assert ranges.REPLICAS_MAX == abi.lib.NEAT_REPLICAS_MAX


def test_neatd_shows_the_defaults_of_the_keeper() -> None:
    source = (ROOT / "replicas/keeper/options.c").read_text()
    for flag, default in neatd.KEEPER_OPTIONS.items():
        (member,) = re.findall(rf'"{flag}"\)\)\s+return &o->(\w+);', source)
        assigned = re.findall(rf"o->{member} = (\d+);", source)
        assert assigned == ([str(default)] if default else []), flag


def test_what_was_not_given_is_not_compared() -> None:
    check_same("n", options(), running("--replicas", "2", "--mode", "stateless", "--pin"))


EVERY = (
    ("--replicas", "3"),
    ("--spin-us", "7"),
    ("--time-wait-ms", "500"),
    ("--mode", "stateless"),
    ("--components", "multi"),
    ("--faults", "6"),
    ("--fault-window", "2.5"),
    ("--hang", "0"),
    ("--stopped", "2"),
    ("--quarantine", "3"),
    ("--rerandomize", "60"),
    ("--replicas-max", "7"),
    ("--scale", "auto"),
    ("--scale-up-at", "80"),
    ("--scale-down-at", "30"),
    ("--pin",),
    ("--apps-max", "5"),
    ("--app-sockets", "100"),
    ("--app-ports", "10"),
    ("--app-buffers", "11"),
    ("--auto",),
    ("--tap", "neat0", "--address", "10.1.0.2/24"),
    ("--wire", "/tmp/w", "--address", "10.1.0.2/24", "--impair", "loss=1%"),
)


@pytest.mark.parametrize("given", EVERY, ids=lambda given: given[0])
def test_an_option_that_the_instance_has_not_is_named(given: tuple[str, ...]) -> None:
    check_same("n", options(*given), running(*given))
    with pytest.raises(InstanceError) as refusal:
        check_same("n", options(*given), running())
    assert f"not {' '.join(given[:2])};" in str(refusal.value)
    assert "neatsock down --name n" in str(refusal.value)


def test_every_option_is_compared() -> None:
    flags = {given[0] for given in EVERY} | {"--address", "--gateway", "--impair"}
    assert {
        shown(f.name, True) if f.type == "bool" else shown(f.name, 1).split()[0]
        for f in fields(StartOptions)
    } == flags
    assert {f.name for f in fields(StartOptions)} == set(running()["options"])


def test_thresholds_that_fight_are_refused() -> None:
    for given in (("--scale-up-at", "30", "--scale-down-at", "60"), ("--scale-up-at", "30")):
        with pytest.raises(cli.Refusal, match="--scale-down-at .* is more than"):
            options("--scale", "auto", *given)
    options("--scale", "auto", "--scale-up-at", "40")


def test_usage_of_run_names_every_option() -> None:
    parser = cli.build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    run = commands.choices["run"]
    flags = [o for a in run._actions for o in a.option_strings if o.startswith("--")]
    assert all(flag in run.format_usage() for flag in flags if flag != "--help")
