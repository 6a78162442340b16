"""Charts of a report as inline SVG that is as wide as its place, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sagellm_backend.conformance.diff import bound_share, group_of

UNITS: Mapping[str, str] = {
    "gb_per_s": "GB/s",
    "gib_per_s": "GiB/s",
    "tflop_per_s": "TFLOP/s",
    "tokens_per_s": "tokens/s",
    "calls_per_s": "calls/s",
    "latency_us": "µs",
    "latency_ms": "ms",
}
"""Metrics that are speeds. ``NAME_limit`` beside one is what the device could do at most."""

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
    """Every measured speed, as a bar where the device's limit is known; "" without any."""
    rows = []
    for case in cases:
        bars = [
            _speed(case["metrics"], name, value)
            for name, value in case["metrics"].items()
            if name in UNITS and value is not None
        ]
        if bars:
            rows.append((case["id"].partition(".")[2], bars))
    return _rows(rows, "of the device's limit") if rows else ""


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


def _speed(metrics: Mapping[str, Any], name: str, value: float) -> Bar:
    limit = metrics.get(f"{name}_limit")
    text = f"{value:,.4g} {UNITS[name]}"
    # A clock that is a little off must not look like a fault.
    return Bar(min(value / limit, 1.0) if limit else 0.0, "speed", text)


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
