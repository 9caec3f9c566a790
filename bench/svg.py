"""A plot without libraries: ratios on a log axis, and CPU per operation as stacked bars."""

from __future__ import annotations

import math
from html import escape

from bench.model import Report, Result, Side
from bench.render import number

ROW, TOP, LEFT, WIDTH = 44, 92, 350, 1100
AXIS = (LEFT, 670)  # x of the ratio panel
BARS = (770, 1050)  # x of the CPU panel
LOWEST, HIGHEST = 0.25, 16.0
STYLE = """
  :root { color-scheme: light dark; }
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .dim { fill: #57606a; font-size: 11px; } .title { font-size: 17px; font-weight: 600; }
  .grid { stroke: #d0d7de; } .one { stroke: #57606a; stroke-width: 1.5; }
  .better { stroke: #1a7f37; fill: #1a7f37; } .worse { stroke: #cf222e; fill: #cf222e; }
  .range { stroke-width: 3; stroke-linecap: round; opacity: .45; }
  .noisy { fill-opacity: .15; stroke-width: 1.5; }
  .server { fill: #0969da; } .client { fill: #6cb6ff; } .stack { fill: #bf8700; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .dim { fill: #9198a1; } .grid { stroke: #30363d; }
    .one { stroke: #9198a1; } .better { stroke: #3fb950; fill: #3fb950; }
    .worse { stroke: #f85149; fill: #f85149; } .server { fill: #388bfd; } .stack { fill: #d29922; }
  }
"""


def text(x: float, y: float, words: str, cls: str = "", anchor: str = "start") -> str:
    """A text element."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{cls}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A line element."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{cls}"/>'


def ratio_x(ratio: float) -> float:
    """Position on the log axis; what is outside sits at its end."""
    at = math.log(min(max(ratio, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return AXIS[0] + at * (AXIS[1] - AXIS[0])


def axis(bottom: float) -> list[str]:
    """Grid of the ratio panel."""
    out = []
    for exponent in range(-2, 5):
        x = ratio_x(2.0**exponent)
        out.append(line(x, TOP - 8, x, bottom, "one" if exponent == 0 else "grid"))
        label = "kernel" if exponent == 0 else f"{2.0**exponent:g}x"
        out.append(text(x, TOP - 14, label, "dim", "middle"))
    return out


def ratio_marks(result: Result, y: float) -> list[str]:
    """Median as a dot, range as a line."""
    r = result.ratio
    if not r:
        words = (result.problem or "kernel only").split("\n")[0]
        return [text(AXIS[0] + 6, y + 4, words[:58], "dim")]
    cls = "better" if r.median >= 1 else "worse"
    right = ratio_x(r.high) + 10
    return [
        line(ratio_x(r.low), y, ratio_x(r.high), y, f"{cls} range"),
        f'<circle cx="{ratio_x(r.median):.1f}" cy="{y:.1f}" r="5" '
        f'class="{cls}{" noisy" if result.noisy else ""}"/>',
        text(right, y + 4, f"{r.median:.2f}x" + (" (noisy)" if result.noisy else "")),
    ]


def cpu_bar(side: Side | None, y: float, most: float) -> list[str]:
    """Stacked server, client, stack; length relative to the larger of the two worlds."""
    if not side or not side.cpu or most <= 0:
        return []
    x, out = float(BARS[0]), []
    stack = side.cpu.replicas + side.cpu.control
    for cls, value in (("server", side.cpu.server), ("client", side.cpu.client), ("stack", stack)):
        width = value / most * (BARS[1] - BARS[0])
        out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="11" class="{cls}"/>')
        x += width
    out.append(text(x + 5, y + 10, number(side.cpu.total), "dim"))
    return out


def values(result: Result) -> str:
    """kernel -> neatsock."""
    found = [
        number(s.value.median) if s and s.value else "-" for s in (result.kernel, result.neatsock)
    ]
    return f"{found[0]} → {found[1]} {result.unit}"


def row(result: Result, y: float) -> list[str]:
    """One case."""
    totals = [s.cpu.total for s in (result.kernel, result.neatsock) if s and s.cpu]
    most = max(totals, default=0.0)
    return [
        text(16, y, result.title),
        text(16, y + 16, values(result), "dim"),
        *ratio_marks(result, y + 2),
        *cpu_bar(result.kernel, y - 10, most),
        *cpu_bar(result.neatsock, y + 4, most),
    ]


def legend() -> list[str]:
    """Heads of the panels."""
    out = [
        text(AXIS[0], TOP - 34, "neatsock against the kernel, right is better"),
        text(BARS[0], TOP - 34, "CPU us per operation: kernel above, neatsock below"),
    ]
    x = float(BARS[0])
    for cls, word in (("server", "server"), ("client", "client"), ("stack", "replicas")):
        out += [
            f'<rect x="{x:.0f}" y="{TOP - 24}" width="10" height="10" class="{cls}"/>',
            text(x + 15, TOP - 15, word, "dim"),
        ]
        x += 80
    return out


def document(width: int, height: int, body: list[str], style: str = STYLE) -> str:
    """A whole picture; it has no background and follows the reader's colour scheme."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n<style>{style}</style>\n'
        + "\n".join(body)
        + "\n</svg>"
    )


def plot(report: Report) -> str:
    """Each result of a run in a row."""
    height = TOP + ROW * len(report.results) + 34
    m = report.machine
    foot = (
        f"{report.started}   {m['cpu']}, {m['cpus']} CPUs, Linux {m['kernel']}   "
        + ", ".join(f"{k} {v}" for k, v in report.settings.items())
        + "   dot: median, bar: range"
    )
    body = [
        text(16, 30, "kernel sockets and neatsock, same work, same run", "title"),
        *legend(),
        *axis(height - 34),
    ]
    for i, result in enumerate(report.results):
        body += row(result, TOP + ROW * i + 20)
    body.append(text(16, height - 12, foot, "dim"))
    return document(WIDTH + 40, height, body)
