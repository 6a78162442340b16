"""The parts of the page of a benchmark, each as HTML with all text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sagellm_backend.bench.charts import ratio_chart, share_chart, times
from sagellm_backend.bench.report import (
    BUSY_SHARE,
    TRIAL,
    absences,
    busy_words,
    figures_of,
    gains,
    target_words,
    verdicts,
)
from sagellm_backend.conformance.charts import figure


def hero(report: Mapping[str, Any]) -> str:
    """What was measured where, and what became of the targets."""
    machine, (met, missed) = report["machine"], verdicts(report["rows"])
    measured = [row for row in report["rows"] if row["ours"]["best"] is not None]
    absent = len(report["rows"]) - len(measured)
    ratios = sum(other["ratio_best"] is not None for row in measured for other in row["others"])
    facts = (
        ("Rows measured", str(len(measured)), f"{absent} could not be" if absent else "all"),
        ("Comparisons", str(ratios), "each in turns with ours"),
        ("Targets met", f"{met} of {met + missed}", f"{missed} missed" if missed else ""),
        ("Processors", str(machine["processors"]), machine["processor"]),
    )
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in facts
    )
    quick = f'<div class="callout bad"><h3>A trial run</h3><p>{escape(TRIAL)}</p></div>'
    return (
        f'<header class="card hero good"><h1>{escape(machine["backend"])} benchmark</h1>'
        f'<p class="device">{escape(machine["device"])}</p>'
        f'<dl class="facts">{entries}</dl></header>{quick if report["quick"] else ""}'
    )


def noise(report: Mapping[str, Any]) -> str:
    """How busy the machine was, and whether that spoils the figures."""
    text, quiet = busy_words(report["busy"])
    tone = "good" if quiet else "bad"
    return (
        f'<div class="callout {tone}"><h3>{"A quiet machine" if quiet else "A busy machine"}</h3>'
        f"<p>{escape(text)}</p></div>"
    )


def targets(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was hoped for and what was measured, a line for each target; "" without any."""
    lines = []
    for row in rows:
        for entry in (*row["others"], *([row["limit"]] if row["limit"] else [])):
            if entry["target"] is None or entry["met"] is None:
                continue
            against = entry.get("name") or entry["text"]
            best, median = gains(entry)
            lines.append(
                f'<tr><th scope="row"><code>{escape(row["name"])}</code></th>'
                f"<td>{escape(against)}</td><td>{_target(entry)}</td>"
                f'<td class="num">{escape(best)}</td><td class="num">{escape(median)}</td></tr>'
            )
    if not lines:
        return ""
    return (
        '<section><h2>Targets</h2><div class="card scroll"><table><thead><tr><th>Row</th>'
        "<th>Against</th><th>Target</th><th class=num>Best</th><th class=num>Median</th></tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def limits(found: Mapping[str, Any]) -> str:
    """The machine's own limits as a table."""
    rows = "".join(
        f'<tr><th scope="row">{each["bytes"] >> 20} MiB</th>'
        + "".join(_number(each[kind], 1e9) for kind in ("read", "write", "copy"))
        + "</tr>"
        for each in found["memory"]
    )
    memory = (
        "<table><thead><tr><th>Memory</th><th class=num>Read GB/s</th><th class=num>Write GB/s</th>"
        f"<th class=num>Copy GB/s</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in found["gemm"].items())
    text = f"<p>Large products in GFLOP/s: {escape(products)}.</p>" if products else ""
    return f"{memory}{text}"


def groups(rows: Sequence[Mapping[str, Any]]) -> str:
    """A section for each group: the chart of ratios, the shares of the limit, the table."""
    names = dict.fromkeys(row["group"] for row in rows if row["ours"]["best"] is not None)
    return "".join(_group(name, [row for row in rows if row["group"] == name]) for name in names)


def absent(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows and the alternatives that could not be run, and why."""
    found = [
        f"<tr><td>{escape(reason)}</td>"
        f"<td>{', '.join(f'<code>{escape(name)}</code>' for name in names)}</td></tr>"
        for reason, names in absences(rows).items()
    ]
    if not found:
        return ""
    return (
        '<section><h2>Not measured</h2><p class="lead">What could not be compared here, and why.</p>'
        f'<div class="card scroll"><table><tbody>{"".join(found)}</tbody></table></div></section>'
    )


def environment(report: Mapping[str, Any]) -> str:
    """Versions and places."""
    machine = report["machine"]
    pairs = [
        ("Processor", f"{machine['processor']}, {machine['processors']} usable"),
        ("Platform", machine["platform"]),
        ("Python", machine["python"]),
        *machine["versions"].items(),
        *((f"Peer {name}", _list(found)) for name, found in report["peers"].items()),
        ("Started, finished", f"{report['started']}, {report['finished']}"),
    ]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in pairs
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _list(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    measured = [row for row in rows if row["ours"]["best"] is not None]
    ratios, shares = ratio_chart(measured), share_chart(measured)
    return (
        f"<section><h2>{escape(name[:1].upper() + name[1:])}</h2>"
        + (f'<div class="card">{ratios}</div>' if ratios else "")
        + (f"<h3>Share of the machine's limit</h3><div class=card>{shares}</div>" if shares else "")
        + f'<div class="card scroll">{_table(measured)}</div></section>'
    )


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    head = (
        "<thead><tr><th>Row</th><th class=num>Best</th><th class=num>Median</th>"
        "<th class=num>Ratio, best</th><th class=num>Ratio, median</th><th>Target</th></tr></thead>"
    )
    body = "".join(_lines(row) for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _lines(row: Mapping[str, Any]) -> str:
    note = f"; {row['note']}" if row["note"] and row["note"] not in row["text"] else ""
    busy = ""
    if row["busy"] is not None and row["busy"] > BUSY_SHARE:
        busy = f' <span class="tag failed">others used {100 * row["busy"]:.0f} %</span>'
    lines = [
        f'<tr class="ours"><th scope="row"><code>{escape(row["name"])}</code><br>'
        f'<span class="case-text">{escape(row["text"] + note)}</span>{busy}</th>'
        f"{_figures(row['ours'], row['unit'])}<td></td><td></td><td></td></tr>"
    ]
    for other in row["others"]:
        if other["best"] is None:
            continue
        ratio = "".join(
            f'<td class="num">{times(other[kind])}</td>' for kind in ("ratio_best", "ratio_median")
        )
        lines.append(
            f'<tr><th scope="row">{escape(other["name"])}</th>'
            f"{_figures(other, row['unit'])}{ratio}<td>{_target(other)}</td></tr>"
        )
    limit = row["limit"]
    if limit and limit["share"] is not None:
        lines.append(
            f'<tr><th scope="row">{escape(limit["text"])}</th><td class="num">'
            f"{escape(figure(limit['value']))} {escape(row['unit'])}</td><td></td>"
            f'<td class="num">{100 * limit["share"]:.0f} %</td><td></td>'
            f"<td>{_target(limit)}</td></tr>"
        )
    return "".join(lines)


def _figures(side: Mapping[str, Any], unit: str) -> str:
    best, median = figures_of(side, unit)
    return f'<td class="num">{escape(best)}</td><td class="num">{escape(median)}</td>'


def _target(entry: Mapping[str, Any]) -> str:
    words = target_words(entry)
    if not words:
        return ""
    kind, mark = ("passed", "✓") if entry["met"] else ("failed", "✗")
    return f'<span class="tag {kind}">{mark} {escape(words)}</span>'


def _number(value: float | None, scale: float) -> str:
    return f'<td class="num">{"-" if value is None else figure(value / scale)}</td>'
