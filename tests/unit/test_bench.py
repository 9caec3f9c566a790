"""The parts of the runner that could make a number wrong without anybody noticing."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench import calls, components, faults, preserved, programs, render, stalls, svg
from bench.cases import last_json, read_rate
from bench.errors import CaseFailed
from bench.measure import Window, check_through, foreign, shares
from bench.model import Reading, Report, Result, Sample, Side, Split
from bench.scatter import Point, scatter
from bench.worlds import KERNEL, World

WRK = """Running 1s test @ http://127.0.0.1:1/page.txt
  1 threads and 64 connections
  Latency Distribution
     50%  472.00us
     75%    0.90ms
     90%    1.10ms
     99%    1.42ms
Requests/sec: 124512.34
"""


def side(world: str, *values: float, foreign_cores: float = 0.0) -> Side:
    return Side(
        world,
        tuple(Sample(Reading(v, v), Split(1.0, 2.0, 3.0, 4.0), foreign_cores) for v in values),
    )


def result(higher: bool = True, company: float = 0.0) -> Result:
    return Result(
        "x",
        "title <&>",
        "req/s",
        "request",
        higher,
        side("kernel", 10, 20, 40),
        side("neatsock", 40, 40, 40, foreign_cores=company),
    )


def report() -> Report:
    machine = dict.fromkeys(("cpu", "cpus", "memory", "kernel", "load"), "?")
    failed = replace(result(), neatsock=None, problem="failed: <nothing>")
    return Report("2026-01-01T00:00:00+00:00", machine, {"rounds": "3"}, (result(), failed))


def test_ratio_is_round_by_round_and_more_is_better() -> None:
    up, down = result(True).ratio, result(False).ratio
    assert up and (up.median, up.low, up.high) == (2.0, 1.0, 4.0)
    assert down and (down.median, down.low, down.high) == (0.5, 0.25, 1.0)


def test_total_of_a_split_has_all_parts() -> None:
    assert Split(1.0, 2.0, 3.0, 4.0).total == 10.0


def test_shares_are_us_per_operation() -> None:
    """2 s at 1000 operations/s: 2000 operations; 4 ms of CPU = 2 us each."""
    zero = dict.fromkeys(("server", "client", "replicas", "control"), 0)
    pair = (Window(1.0, zero, 0), Window(3.0, {**zero, "server": 4_000_000}, 0))
    assert shares(pair, 1000.0) == Split(2.0, 0.0, 0.0, 0.0)


def test_foreign_is_what_is_busy_and_not_ours() -> None:
    zero = dict.fromkeys(("server", "client", "replicas", "control"), 0)
    pair = (Window(0.0, zero, 0), Window(1.0, {**zero, "client": 10**9}, 15 * 10**8))
    assert foreign(pair, 0) == pytest.approx(0.5)
    assert foreign(pair, 5 * 10**8) == 0.0


def test_a_load_that_leaves_the_replicas_idle_is_not_neatsock() -> None:
    zero = dict.fromkeys(("server", "client", "replicas", "control"), 0)
    pair = (Window(0.0, zero, 0), Window(1.0, {**zero, "server": 10**9}, 10**9))
    check_through(KERNEL, pair)
    with pytest.raises(CaseFailed, match="not on neatsock"):
        check_through(World("neatsock"), pair)


def test_noise_is_marked_wherever_the_ratio_is_shown() -> None:
    quiet = report()
    noisy = replace(quiet, results=(result(company=0.5),))
    assert "noisy" not in render.summary(quiet)
    assert "noisy" in render.summary(noisy)
    assert "(noisy)" in svg.plot(noisy)
    assert noisy.as_json()["results"][0]["noisy"] is True


def test_wrk() -> None:
    assert programs.read_wrk(WRK) == Reading(124512.34, 124512.34, 472.0, 1420.0)


@pytest.mark.parametrize(
    "line",
    ["  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 7"],
)
def test_wrk_with_errors_fails(line: str) -> None:
    with pytest.raises(CaseFailed, match="wrk saw errors"):
        programs.read_wrk(WRK + line + "\n")


def test_redis_benchmark() -> None:
    text = (
        '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms",'
        '"p99_latency_ms","max_latency_ms"\n'
        '"GET","86500.5","0.3","0.1","0.287","0.5","0.607","2.1"\n'
    )
    assert programs.read_redis(text) == Reading(86500.5, 86500.5, 287.0, 607.0)


def test_load_programs_print_json_last() -> None:
    line = '{"rate": 5.0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0}'
    assert read_rate(f"noise\n{line}\n") == Reading(5.0, 5.0, 1.0, 2.0, 3.0)
    with pytest.raises(CaseFailed, match="printed no result"):
        last_json("")


def test_perf_counts_by_thread() -> None:
    text = "\n".join(
        f"{name},{n},,{calls.EVENT},1000,100.00,,"
        for name, n in (("echo_server-17", 5), ("a-b c-18", 7), ("echo_server-17", 2))
    )
    assert calls.parse_perf(text) == {calls.EVENT: {17: 7, 18: 7}}


def test_an_open_stands_for_its_close_too() -> None:
    names = ("openat", "newfstat", "fstat", "pread64", "epoll_wait", "read", "close", "sendfile")
    assert [calls.weight(name) for name in names] == [2, 1, 1, 1, 0, 0, 0, 0]


def test_strace_total_with_and_without_the_errors_column() -> None:
    head = "% time     seconds  usecs/call     calls    errors syscall\n"
    assert calls.parse_strace(head + "100.00    0.002    0       812        15 total\n") == {
        "total": 812
    }
    assert calls.parse_strace(head + "100.00    0.002    0       812           total\n") == {
        "total": 812
    }


def test_svg_is_well_formed_and_fits_both_themes() -> None:
    text = svg.plot(report())
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text


def test_a_scatter_plot_is_well_formed_and_marks_each_point() -> None:
    points = [Point("a <b>", "x 1", 3.0, 0.5, True), Point("c", "x 2", 0.0, 1.0, False)]
    root = ElementTree.fromstring(scatter("title", ("x", "y"), points, "foot"))
    marks = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(marks) == 4  # the legend has one for each series


def test_what_a_crash_leaves_by_the_papers_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """6.5.4: 1 - 1/N for one process, 1 - (code of tcp / code of all) / N for four."""
    sizes = {"neat-tcp": 60, "neat-ip": 20, "neat-udp": 10, "neat-filter": 10, "neat-replica": 80}
    monkeypatch.setattr(components, "code_bytes", lambda path: sizes[path.name])
    assert preserved.Setup("single", "stateless", 4).modelled == pytest.approx(0.75)
    assert preserved.Setup("multi", "stateless", 2).modelled == pytest.approx(0.70)
    assert preserved.Setup("multi", "stateful", 1).modelled == 1.0
    assert preserved.Setup("multi", "stateless", 1).code["replica"] == 60


def loss(replica: int | None, who: str = "client one 1") -> faults.Loss:
    return faults.Loss(who, replica, "recv: reset")


@pytest.mark.parametrize(
    ("losses", "disasters", "down", "want"),
    [
        ([], [], False, "transparent"),
        ([loss(1)], [], False, "one connection"),
        ([loss(1), loss(1)], [], False, "one connection"),
        ([loss(1), loss(1, "client one 2")], [], False, "one replica"),
        ([loss(1)], [], True, "one replica"),
        ([loss(0)], [], False, "all"),
        ([loss(1), loss(None, "client one 2")], [], False, "all"),
        ([], ["client one hangs"], False, "all"),
    ],
)
def test_who_noticed_a_fault(
    losses: list[faults.Loss], disasters: list[str], down: bool, want: str
) -> None:
    assert faults.classify(1, losses, disasters, down) == want


def test_the_table_counts_each_fault_once() -> None:
    trials = [
        faults.Trial(0, "ring", 0, "", [loss(0)], deaths=1),
        faults.Trial(1, "ring", 0, "", wrong=["server one: wrong byte"]),
        faults.Trial(2, "stop", 1, "", deaths=1),
    ]
    rows = faults.tally(trials)
    assert list(rows) == ["ring", "stop", "sum"]
    assert rows["sum"] == {
        "faults": 3,
        "died": 2,
        "transparent": 2,
        "one connection": 1,
        "wrong bytes": 1,
        "down": 0,
    }


def test_a_stall_is_more_than_the_kernel_has() -> None:
    def seen(*slow_ms: float, count: int = 100) -> stalls.Seen:
        return stalls.Seen(count, 0.1, 1.0, slow_ms)

    assert seen(29.9, 30, 41, 201, 203, 1004).bands() == (2, 0, 2, 0, 1)
    assert stalls.suspicious(seen(), seen(41, 41))
    assert not stalls.suspicious(seen(), seen(41)), "once is noise"
    assert not stalls.suspicious(seen(44, 44), seen(41, 41, 41)), "as on Linux"
    assert stalls.suspicious(seen(41, 41, count=1000), seen(41, 41))
