"""Charts of a report as inline SVG that is as wide as its place, without scripts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sagellm_backend.conformance.diff import SPEEDS, bound_share, group_of

_LINE, _BAR = 18, 10


@dataclass(frozen=True)
class Bar:
    """One bar: its share of the full width (over 1 is a fault), its colour class and its text."""

    share: float
    series: str
    text: str


def accuracy_chart(cases: Iterable[Mapping[str, Any]]) -> str:
    """The worst ``r_max / bound`` of every function, a bar for each dtype; "" without any."""
    worst: dict[str, dict[str, float]] = {}
    for case in cases:
        share = bound_share(case)
        if share is not None:
            function, dtype = group_of(case)
            series = worst.setdefault(function, {})
            series[dtype] = max(series.get(dtype, 0.0), share)
    if not worst:
        return ""
    dtypes = list(dict.fromkeys(dtype for series in worst.values() for dtype in series))
    legend = "".join(
        f'<li><span class="swatch s-{escape(dtype or "any")}"></span>{escape(dtype or "all")}</li>'
        for dtype in dtypes
    )
    rows = [
        (function, [Bar(share, dtype or "any", percent(share)) for dtype, share in series.items()])
        for function, series in worst.items()
    ]
    return f'<ul class="legend">{legend}</ul>{_rows(rows, "of the bound")}'


def exact_groups(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """The functions that have cases which had to be, and were, exact."""
    found = (
        case
        for case in cases
        if case["outcome"] == "passed" and case["metrics"].get("bound") == 0.0
    )
    return list(dict.fromkeys(group_of(case)[0] for case in found))


def speed_chart(cases: Iterable[Mapping[str, Any]]) -> str:
    """Every measured speed with what it means, and a bar where a limit was measured; "" without."""
    return "".join(
        _speed(case, name, value)
        for case in cases
        for name, value in case["metrics"].items()
        if name in SPEEDS and value is not None
    )


def percent(share: float) -> str:
    """A share as it is read: ``47 %`` of a bound, or ``3.2 times`` if it is over."""
    if share > 1:
        return f"{share:.3g} times"
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def proportion(passed: int, total: int) -> str:
    """A thin bar of how many of all passed; one failure among thousands shows."""
    share = 100.0 if passed == total else min(100 * passed / max(total, 1), 97.0)
    return (
        f'<svg class="meter" role="img" aria-label="{passed} of {total} passed" height="8">'
        f'<rect class="{"good" if passed == total else "bad"}" width="100%" height="8" rx="4"/>'
        f'<rect class="good" width="{share:.2f}%" height="8" rx="4"/></svg>'
    )


def prose(text: str) -> str:
    """The text of a docstring, with what stands in backticks as code."""
    return re.sub("``?([^`]+)``?", r"<code>\1</code>", escape(text))


def speed_text(metrics: Mapping[str, Any], name: str) -> str:
    """A speed as it is read: ``6.1 GB/s, 76 % of 8.0``, or without its limit ``144 µs``."""
    limit = metrics.get(f"{name}_limit")
    text = f"{figure(metrics[name])} {SPEEDS[name]}"
    return f"{text}, {100 * metrics[name] / limit:.0f} % of {figure(limit)}" if limit else text


def figure(value: float) -> str:
    """Three digits that count, and none more: ``0.0921``, ``6.10``, ``144``, ``455,800``."""
    if not value:
        return "0"
    places = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{places}f}" if abs(value) >= 1e-4 else f"{value:.2e}"


def _speed(case: Mapping[str, Any], name: str, value: float) -> str:
    """One speed: name, dtype, figure, bar, meaning."""
    function, dtype = group_of(case)
    words = function.removeprefix("speed_of_").replace("_", " ")
    text = escape(speed_text(case["metrics"], name))
    limit = case["metrics"].get(f"{name}_limit")
    bar = ""
    if limit:
        # Above its limit by another cache or a quiet moment: a full bar, and the figure tells.
        width = f"{100 * min(value / limit, 1.0):.2f}%"
        label = escape(f"{words} {dtype}: {speed_text(case['metrics'], name)}", quote=True)
        bar = (
            f'<svg class="bars" role="img" aria-label="{label}" height="8">'
            '<rect class="track" width="100%" height="8" rx="3"/>'
            f'<rect class="s-speed" width="{width}" height="8" rx="3"/></svg>'
        )
    tag = f' <span class="tag">{escape(dtype)}</span>' if dtype else ""
    return (
        f'<div class="speed"><p><b>{escape(words[:1].upper() + words[1:])}</b>{tag}'
        f'<span class="speed-figure">{text}</span></p>{bar}'
        f'<p class="case-text">{prose(case["text"])}</p></div>'
    )


def _rows(rows: Sequence[tuple[str, Sequence[Bar]]], what: str) -> str:
    return "".join(
        f'<div class="row"><div class="row-name">{escape(name)}</div>{_svg(name, bars, what)}</div>'
        for name, bars in rows
    )


def _svg(name: str, bars: Sequence[Bar], what: str) -> str:
    """The bars as a picture, and their numbers beside it."""
    told = ", ".join(f"{bar.series} {bar.text}" for bar in bars)
    label = escape(f"{name}: {told} {what}", quote=True)
    shapes = []
    for index, bar in enumerate(bars):
        place = f'y="{index * _LINE + (_LINE - _BAR) // 2}" height="{_BAR}" rx="3"'
        kind = "bad" if bar.share > 1 else f"s-{escape(bar.series, quote=True)}"
        width = f"{100 * min(bar.share, 1):.2f}%"
        shapes.append(f'<rect class="track" width="100%" {place}/>')
        shapes.append(f'<rect class="{kind}" width="{width}" {place}/>')
    numbers = "".join(
        f"<li{' class=over' if bar.share > 1 else ''}>{escape(bar.text)}</li>" for bar in bars
    )
    height = len(bars) * _LINE
    return (
        f'<svg class="bars" role="img" aria-label="{label}" height="{height}">{"".join(shapes)}</svg>'
        f'<ul class="numbers" aria-hidden="true">{numbers}</ul>'
    )
