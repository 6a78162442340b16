"""``sagellm-backend bench``: how fast a backend is, beside its alternatives and the machine."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_backend.cli.tables import print_items, print_table
from sagellm_backend.errors import InvalidArgumentError

if TYPE_CHECKING:
    from sagellm_backend.bench.result import Result
    from sagellm_backend.bench.row import Row


def add_to(commands: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench", help="measure a backend beside alternatives and the machine's limits"
    )
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="which backend (default: the best here)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ROW", help="rows or groups; a* is all from a on"
    )
    parser.add_argument("--list", action="store_true", help="show the rows, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="try it out: figures mean nothing")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write bench.json and index.html into this folder"
    )
    parser.add_argument(
        "--also", type=Path, metavar="DIR", help="folder with more rows (rows.py) and peers/*.py"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer,
        metavar="NAME=PYTHON",
        help="the Python of an environment with an alternative, such as vllm; may be repeated",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Measure the rows that were asked for; 0 whatever the figures are."""
    from sagellm_backend.bench import run as bench
    from sagellm_backend.bench.row import select
    from sagellm_backend.registry import get_provider

    _load_rows(options.also)
    chosen = select(options.only)
    if options.list:
        _print_list(chosen, as_json=options.json)
        return 0
    plan = bench.Plan(
        chosen,
        dict(options.peer),
        None if options.also is None else options.also.absolute() / "peers",
        options.quick,
        f"sagellm-backend {shlex.join(sys.argv[1:])}",
    )
    with get_provider(options.backend) as provider:
        report = bench.run(provider, plan, lambda number, row: _say(number, len(chosen), row))
    if options.out is not None:
        _write(report, options.out)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report)
    return 0


def print_report(report: Mapping[str, Any]) -> None:
    """Print the limits, the table, and the note on how busy the machine was."""
    from sagellm_backend.bench.report import TRIAL, absences, busy_words, verdicts

    memory = [
        (f"{each['bytes'] >> 20} MiB", *(_rate(each[kind]) for kind in ("read", "write", "copy")))
        for each in report["limits"]["memory"]
    ]
    print_table(("Memory", "Read GB/s", "Write GB/s", "Copy GB/s"), memory)
    products = {name: f"{rate / 1e9:.0f}" for name, rate in report["limits"]["gemm"].items()}
    if products:
        words = ", ".join(f"{name} {rate}" for name, rate in products.items())
        print(f"Large products, GFLOP/s: {words}\n")
    columns = ("Row", "Best", "Median", "Ratio", "Median", "Target")
    print_table(columns, [line for row in report["rows"] for line in _lines(row)])
    print_items((reason, ", ".join(what), "") for reason, what in absences(report["rows"]).items())
    met, missed = verdicts(report["rows"])
    told = f"Targets met: {met} of {met + missed}."
    print(busy_words(report["busy"])[0], TRIAL if report["quick"] else told)


def _lines(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The lines of one row: ours, each alternative that was measured, and the limit."""
    from sagellm_backend.bench.report import gains, verdict
    from sagellm_backend.conformance.charts import figure

    def figures(side: Mapping[str, Any]) -> tuple[str, str]:
        return f"{figure(side['best'])} {row['unit']}", figure(side["median"])

    if row["ours"]["absent"]:
        return
    yield row["name"], *figures(row["ours"]), "", "", ""
    for other in row["others"]:
        if other["absent"] is None:
            ratios = (figure(other[kind]) for kind in ("ratio_best", "ratio_median"))
            yield f"- {other['name']}", *figures(other), *ratios, verdict(other)
    limit = row["limit"]
    if limit and limit["share"] is not None:
        best = f"{figure(limit['value'])} {row['unit']}"
        yield f"- {limit['kind']}", best, "", gains(limit)[0], "", verdict(limit)


def _print_list(rows: tuple[Row, ...], *, as_json: bool) -> None:
    if as_json:
        data = [{"name": row.name, "group": row.group, "text": row.text} for row in rows]
        print(json.dumps(data, indent=2))
    else:
        print_table(("Row", "Group", "What"), [(row.name, row.group, row.text) for row in rows])


def _say(number: int, total: int, result: Result) -> None:
    sys.stderr.write(f"{number} of {total}: {result.row.name}\n")
    sys.stderr.flush()


def _write(report: Mapping[str, Any], folder: Path) -> None:
    from sagellm_backend.bench.html import html_page

    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "bench.json", folder / "index.html"
    data.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    page.write_text(html_page(report), encoding="utf-8")
    sys.stderr.write(f"Written: {data}, {page}\n")


def _load_rows(folder: Path | None) -> None:
    """Declare the rows of core, and those of the folder's ``rows.py``."""
    import runpy

    import sagellm_backend.bench.rows  # noqa: F401 - importing them declares them

    if folder is None:
        return
    path = folder.absolute() / "rows.py"
    if not path.is_file():
        raise InvalidArgumentError(f"{path} does not exist.", hint="Name a folder with a rows.py.")
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path))


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.1f}"


def _peer(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not name or not equals or not python:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON")
    return name, python
