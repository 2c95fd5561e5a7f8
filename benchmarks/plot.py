"""A result as a picture: bars of the median time of everybody, with whiskers from the least to the most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from benchmarks.contenders import OURS
from benchmarks.report import Row, rows

_WIDTH: Final = 860
_LABELS: Final = 250  # room for names
_VALUES: Final = 130  # room for numbers behind the bars
_BAR: Final = 18
_STEP: Final = 26
_HEAD: Final = 44
_OURS: Final = "#1f6feb"
_THEIRS: Final = "#9aa4b2"


def svg(result: Mapping[str, Any]) -> str:
    """One panel for each direction, transport and case, each with a scale of its own."""
    titles = {(item["direction"], item["name"]): item["title"] for item in result["contenders"]}
    cases = {case["name"]: case["title"] for case in result["cases"]}
    panels: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows(result):
        if not row.masked and row.case != "start":
            panels.setdefault((row.direction, row.transport, row.case), []).append(row)
    parts, y = [], 10
    for (direction, transport, case), members in panels.items():
        ordered = sorted(members, key=lambda row: row.wall[0])
        title = f"{direction}, {transport.upper()}, {cases[case]}: seconds"
        parts.append(_text(10, y + 20, title, weight="bold"))
        parts += _panel(ordered, y + _HEAD - 12, titles)
        y += _HEAD + _STEP * len(ordered)
    style = "font-family='system-ui, sans-serif' font-size='13' fill='#24292f'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{y + 10}' {style}>\n"
        f"<rect width='100%' height='100%' fill='#ffffff'/>\n{''.join(parts)}</svg>\n"
    )


def _panel(members: Sequence[Row], top: int, titles: Mapping[tuple[str, str], str]) -> list[str]:
    longest = max(row.wall[2] for row in members) or 1.0
    scale = (_WIDTH - _LABELS - _VALUES) / longest
    parts = []
    for number, row in enumerate(members):
        y = top + number * _STEP
        middle, least, most = row.wall
        colour = _OURS if row.contender == OURS else _THEIRS
        parts.append(_text(_LABELS - 8, y + 14, titles[row.direction, row.contender], anchor="end"))
        parts.append(
            f"<rect x='{_LABELS}' y='{y}' width='{middle * scale:.1f}' height='{_BAR}'"
            f" fill='{colour}'/>\n"
        )
        left, right, centre = _LABELS + least * scale, _LABELS + most * scale, y + _BAR / 2
        parts.append(
            f"<path d='M{left:.1f} {centre}H{right:.1f}M{left:.1f} {centre - 4}v8"
            f"M{right:.1f} {centre - 4}v8' stroke='#24292f' fill='none'/>\n"
        )
        parts.append(_text(round(right) + 8, y + 14, f"{middle:.2f} s, CPU {row.cpu[0]:.2f}"))
    return parts


def _text(x: int, y: int, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-weight='{weight}'>{escape(text)}</text>\n"
