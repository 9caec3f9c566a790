"""A scatter plot without libraries: series of labelled points, hollow or filled."""

from __future__ import annotations

from dataclasses import dataclass

from bench.svg import STYLE, document, line, text

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 720, 84, 390
COLOURS = ("server", "stack", "client")  # of svg.STYLE
MARK = "  .hollow { fill-opacity: 0; stroke-width: 2; }\n" + "".join(
    f"  circle.{name} {{ stroke: {colour}; }}\n"
    for name, colour in (("server", "#0969da"), ("stack", "#bf8700"), ("client", "#6cb6ff"))
)


@dataclass(frozen=True)
class Point:
    """One mark. `y` is a share between 0 and 1."""

    series: str
    label: str
    x: float
    y: float
    filled: bool


def scatter(title: str, axes: tuple[str, str], points: list[Point], foot: str) -> str:
    """All points; modelled ones hollow, say, measured ones filled."""
    most = 1.15 * max((p.x for p in points), default=1.0)
    colours = dict(zip(dict.fromkeys(p.series for p in points), COLOURS, strict=False))
    body = [text(16, 30, title, "title"), *_grid(most, axes)]
    for i, (name, colour) in enumerate(colours.items()):
        body += [_circle(LEFT + 8 + 170 * i, 54, 5, colour), text(LEFT + 18 + 170 * i, 58, name)]
    for p in points:
        x, y = _place(p, most)
        hollow = "" if p.filled else " hollow"
        body.append(_circle(x, y, 5 if p.filled else 8, colours[p.series] + hollow))
        if p.filled:
            body.append(text(x, y + (24 if p.y > 0.1 else -14), p.label, "dim", "middle"))
    body.append(text(16, HEIGHT - 12, foot, "dim"))
    return document(WIDTH, HEIGHT, body, STYLE + MARK)


def _grid(most: float, axes: tuple[str, str]) -> list[str]:
    out = []
    for i in range(6):
        y = BOTTOM - (BOTTOM - TOP) * i / 5
        out.append(line(LEFT, y, RIGHT, y, "grid"))
        out.append(text(LEFT - 8, y + 4, f"{i / 5:.1f}", "dim", "end"))
        x = LEFT + (RIGHT - LEFT) * i / 5
        out.append(text(x, BOTTOM + 18, f"{most * i / 5:.0f}", "dim", "middle"))
    out.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, axes[0], "dim", "middle"))
    out.append(text(LEFT, TOP - 10, axes[1], "dim"))
    return out


def _place(p: Point, most: float) -> tuple[float, float]:
    return LEFT + (RIGHT - LEFT) * p.x / most, BOTTOM - (BOTTOM - TOP) * p.y


def _circle(x: float, y: float, radius: int, cls: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{cls}"/>'
