"""A report in words: for the table, the page, and whoever asks what became of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sagellm_backend.conformance.charts import figure

TRIAL = "Made with --quick: small work, one round. Its figures mean nothing."

BUSY_SHARE = 0.05
"""The share of all processors in other hands from which on figures are to be doubted."""

_SCALING = 1.8


def verdicts(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many targets were met, and how many missed; what was not measured is neither."""
    met = [
        entry["met"]
        for row in rows
        for entry in (*row["others"], *([row["limit"]] if row["limit"] else []))
        if entry["met"] is not None
    ]
    return sum(met), len(met) - sum(met)


def figures_of(side: Mapping[str, Any], unit: str) -> tuple[str, str]:
    """Best and median with their unit, "" where it was not measured."""
    if side["best"] is None:
        return "", ""
    return f"{figure(side['best'])} {unit}", f"{figure(side['median'])} {unit}"


def absences(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What was not measured, by the reason: names of rows, or of a row and an alternative."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["ours"]["absent"]:
            found.setdefault(row["ours"]["absent"], []).append(row["name"])
            continue
        for other in row["others"]:
            if other["absent"]:
                reason = f"{other['name']}: {other['absent']}"
                found.setdefault(reason, []).append(row["name"])
    return found


def gains(entry: Mapping[str, Any]) -> tuple[str, str]:
    """The ratio to an alternative, best against best and median against median, or to a limit."""
    if "share" in entry:
        return f"{100 * entry['share']:.0f} %", ""
    if entry["target"] and entry["target"]["more_us"] is not None:
        return f"{entry['more_us']:+.2f} µs", ""
    return f"{figure(entry['ratio_best'])}x", f"{figure(entry['ratio_median'])}x"


def target_words(entry: Mapping[str, Any]) -> str:
    """A target in words, "" without one."""
    return _target(entry, "at least ", "at most ")


def verdict(entry: Mapping[str, Any]) -> str:
    """A target and what became of it, in as few words as a table has room for."""
    words = _target(entry, "\N{GREATER-THAN OR EQUAL TO} ", "\N{LESS-THAN OR EQUAL TO} ")
    if not words or entry["met"] is None:
        return words
    got = f" ({gains(entry)[0]})" if entry["target"]["more_us"] is not None else ""
    return f"{words} {'met' if entry['met'] else 'missed'}{got}"


def busy_words(busy: Mapping[str, Any]) -> tuple[str, bool]:
    """The note on how busy the machine was, and whether it was quiet, as far as is known."""
    words, quiet = [], True
    if busy["others"] is not None:
        quiet &= busy["others"] <= BUSY_SHARE
        words.append(
            f"while it was measured other processes used {100 * busy['others']:.1f} % of the processors"
        )
    if busy["stolen"] is not None:
        quiet &= busy["stolen"] <= BUSY_SHARE
        words.append(f"the host took {100 * busy['stolen']:.1f} %")
    if busy["scaling"] is not None:
        quiet &= busy["scaling"] >= _SCALING
        words.append(f"two spinning processes did {busy['scaling']:.2f} times the work of one")
    loads = {"before": busy["load_before"], "after": busy["load_after"]}
    words += [f"load {when} {load[0]:g}" for when, load in loads.items() if load]
    text = "; ".join(words) or "nothing is known of it"
    return f"{text[:1].upper()}{text[1:]}.", quiet


def _target(entry: Mapping[str, Any], least: str, most: str) -> str:
    target = entry["target"]
    if target is None:
        return ""
    if target["more_us"] is not None:
        return f"{most}{target['more_us']:+.2f} µs"
    if "share" in entry:
        return f"{least}{100 * target['ratio']:.0f} %"
    return f"{least}{target['ratio']:g}x"
