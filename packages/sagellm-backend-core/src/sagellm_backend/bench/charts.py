"""The chart of ratios as inline SVG, on a logarithmic scale: right of 1.0 is in our favour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sagellm_backend.conformance.charts import figure

_LINE, _BAR, _EDGE = 22, 10, 4


def ratio_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each alternative of each row, from 1.0 to the ratio, with a mark at the target."""
    pairs = [
        (row, other) for row in rows for other in row["others"] if other["ratio_best"] is not None
    ]
    if not pairs:
        return ""
    low, high = _range(pairs)
    lines = "".join(_line(row, other, low, high) for row, other in pairs)
    return f'<div class="ratios">{_axis(low, high)}{lines}</div>'


def share_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """The share of the machine's limit that each row reached; a full bar is the limit."""
    lines = [_share(row, row["limit"]) for row in rows if row["limit"]]
    return f'<div class="ratios">{"".join(lines)}</div>' if any(lines) else ""


def times(ratio: float) -> str:
    """A ratio as it is read: ``1.32x``."""
    return f"{figure(ratio)}x"


def _range(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[float, float]:
    """Powers of two around all ratios and targets, and around 1."""
    values = [1.0]
    for _, other in pairs:
        values.append(max(other["ratio_best"], 2.0**-20))
        if other["target"] and other["target"]["ratio"]:
            values.append(other["target"]["ratio"])
    low = 2.0 ** math.floor(math.log2(min(values)) - 0.1)
    return low, 2.0 ** math.ceil(math.log2(max(values)) + 0.1)


def _place(value: float, low: float, high: float) -> float:
    """Percent of the width at which a ratio lies."""
    share = math.log2(max(value, low) / low) / math.log2(high / low)
    return 100 * min(max(share, 0.0), 1.0)


def _axis(low: float, high: float) -> str:
    powers = range(round(math.log2(low)), round(math.log2(high)) + 1)
    step = max(1, len(powers) // 8)
    marks = []
    for power in powers:
        if power % step and power:
            continue
        place = _place(2.0**power, low, high)
        anchor = "start" if place < _EDGE else "end" if place > 100 - _EDGE else "middle"
        marks.append(
            f'<text x="{place:.2f}%" y="11" text-anchor="{anchor}" class="tick'
            f'{" one" if power == 0 else ""}">{figure(2.0**power) if power else "1.0"}</text>'
        )
    return (
        '<div class="row axis"><div class="row-name"></div>'
        f'<svg class="bars" height="16" aria-hidden="true">{"".join(marks)}</svg>'
        '<div class="numbers"></div></div>'
    )


def _line(row: Mapping[str, Any], other: Mapping[str, Any], low: float, high: float) -> str:
    ratio, target = other["ratio_best"], (other["target"] or {}).get("ratio")
    start, end = sorted((_place(1.0, low, high), _place(ratio, low, high)))
    middle = _place(other["ratio_median"], low, high)
    kind = "bad" if other["met"] is False else "good" if other["met"] else "s-any"
    shapes = [
        f'<rect class="track" width="100%" y="{(_LINE - _BAR) // 2}" height="{_BAR}" rx="3"/>',
        f'<rect class="{kind}" x="{start:.2f}%" width="{max(end - start, 0.3):.2f}%" '
        f'y="{(_LINE - _BAR) // 2}" height="{_BAR}" rx="2"/>',
        f'<circle class="median" cx="{middle:.2f}%" cy="{_LINE // 2}" r="3"/>',
        _mark(_place(1.0, low, high), "one"),
    ]
    told = f"{row['name']} against {other['name']}: {times(ratio)}"
    if target:
        shapes.append(_mark(_place(target, low, high), "target"))
        told += f", the target is {times(target)}"
    return (
        f'<div class="row"><div class="row-name">{escape(row["name"])}'
        f'<br><span class="case-text">{escape(other["name"])}</span></div>'
        f'<svg class="bars" role="img" aria-label="{escape(told, quote=True)}" height="{_LINE}">'
        f"{''.join(shapes)}</svg>"
        f'<div class="numbers"><b>{times(ratio)}</b></div></div>'
    )


def _share(row: Mapping[str, Any], limit: Mapping[str, Any]) -> str:
    share = limit["share"]
    if share is None:
        return ""
    kind = "bad" if limit["met"] is False else "good" if limit["met"] else "s-any"
    place = f'y="{(_LINE - _BAR) // 2}" height="{_BAR}" rx="3"'
    shapes = [
        f'<rect class="track" width="100%" {place}/>',
        f'<rect class="{kind}" width="{100 * min(share, 1.0):.2f}%" {place}/>',
    ]
    if limit["target"] and limit["target"]["ratio"]:
        shapes.append(_mark(100 * min(limit["target"]["ratio"], 1.0), "target"))
    words = f"{100 * share:.0f} %"
    told = escape(f"{row['name']}: {words} of {limit['text']}", quote=True)
    return (
        f'<div class="row"><div class="row-name">{escape(row["name"])}'
        f'<br><span class="case-text">{escape(limit["kind"])}</span></div>'
        f'<svg class="bars" role="img" aria-label="{told}" height="{_LINE}">{"".join(shapes)}</svg>'
        f'<div class="numbers"><b>{words}</b></div></div>'
    )


def _mark(place: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{place:.2f}%" x2="{place:.2f}%" y1="1" y2="{_LINE - 1}"/>'
