"""Results as text."""

from __future__ import annotations

from bench.model import COMPANY, Report, Result, Side, Split, Spread


def number(value: float) -> str:
    """Three or four significant digits with a thousands suffix."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.2f} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.1f} k"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def small(value: float) -> str:
    """For counts per operation that may be tiny."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def ranged(s: Spread) -> str:
    """Median and range."""
    return f"{number(s.median)} ({number(s.low)} to {number(s.high)})"


def parts(split: Split, show: str, neat: bool) -> str:
    """A total and who caused it."""
    form = small if show == "small" else number
    names = [("server", split.server), ("client", split.client)]
    if neat:
        names += [("replicas", split.replicas), ("other", split.control)]
    return f"{form(split.total)} = " + " + ".join(f"{name} {form(v)}" for name, v in names)


def side_lines(side: Side, result: Result) -> list[str]:
    """What is known of one world."""
    neat = side.world != "kernel"
    value = side.value
    times = [
        f"{name} {number(v)} us" for name in ("p50", "p99") if (v := side.latency(name)) is not None
    ]
    lines = [
        f"  {side.world:<9} {ranged(value) if value else '-'} {result.unit}"
        + (f"   {', '.join(times)}" if times else "")
    ]
    if side.cpu:
        lines.append(f"{'':12}CPU us per {result.op}: {parts(side.cpu, 'number', neat)}")
    if side.calls:
        lines.append(
            f"{'':12}system calls per {result.op}: "
            f"{parts(side.calls.per_op, 'small', neat)}   ({side.calls.tool})"
        )
        if side.calls.files.total >= 0.005:
            rest = side.calls.per_op.total - side.calls.files.total
            lines.append(
                f"{'':12}of these for files (open, stat, pread, close) "
                f"{small(side.calls.files.total)}, for sockets and waiting {small(max(rest, 0.0))}"
            )
    return lines


def warnings(result: Result) -> list[str]:
    """What makes these numbers less good than they look."""
    found = []
    samples = result.samples
    if noisy := [s.foreign for s in samples if s.foreign > COMPANY]:
        found.append(
            f"{len(noisy)} of {len(samples)} runs had company: other processes used up "
            f"to {max(noisy):.2f} cores; repeat on a quiet machine"
        )
    if stray := [s.stray for s in samples if s.stray > 0.01]:
        found.append(
            f"the idle neatsock instance used up to {max(stray):.3f} cores during "
            "kernel runs; it should use none"
        )
    return found


def block(result: Result) -> str:
    """One case."""
    lines = [result.title]
    for side in (result.kernel, result.neatsock):
        if side:
            lines += side_lines(side, result)
    if result.ratio:
        r = result.ratio
        lines.append(f"  neatsock is {r.median:.2f} times as good ({r.low:.2f} to {r.high:.2f})")
    if result.kernel and result.neatsock and result.kernel.cpu and result.neatsock.cpu:
        less = result.kernel.cpu.total / max(result.neatsock.cpu.total, 1e-9)
        lines.append(f"  kernel CPU per {result.op} / neatsock CPU per {result.op}: {less:.2f}")
    lines += [f"  {note}" for note in result.notes]
    lines += [f"  ! {text}" for text in warnings(result)]
    if result.problem:
        lines.append("  ! " + result.problem.replace("\n", "\n    "))
    return "\n".join(lines)


def summary(report: Report) -> str:
    """One line for each case."""
    width = max((len(r.title) for r in report.results), default=0)
    lines = [f"{'':{width}}  {'kernel':>10} {'neatsock':>10}  {'unit':<12} better by (range)"]
    for r in report.results:
        values = [number(s.value.median) if s and s.value else "-" for s in (r.kernel, r.neatsock)]
        ratio = (
            f"{r.ratio.median:.2f} ({r.ratio.low:.2f} to {r.ratio.high:.2f})"
            if r.ratio
            else (r.problem or "").split("\n")[0]
        )
        ratio += "  noisy, do not quote" if r.noisy else ""
        lines.append(f"{r.title:{width}}  {values[0]:>10} {values[1]:>10}  {r.unit:<12} {ratio}")
    return "\n".join(lines)


def heading(report: Report) -> str:
    """Machine and settings."""
    m = report.machine
    return (
        f"{m['cpu']}, {m['cpus']} CPUs, {m['memory']}, Linux {m['kernel']}; load {m['load']}; "
        + ", ".join(f"{k} {v}" for k, v in report.settings.items())
    )
