"""Tables for people, by rich, which is imported only when one is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table as wide as the terminal, or 80 columns where there is none.

    Text stands as it is: square brackets are no markup here. ``NO_COLOR`` is heeded.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        *columns,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=title or None,
        title_justify="left",
        show_header=any(columns),
    )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def print_items(items: Iterable[tuple[str, str, str]]) -> None:
    """Print ``(name, text, next step)`` as wrapped paragraphs under their names."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    for name, text, step in items:
        lead = f"{name}: " if name else "- "
        indent = "  "
        print(textwrap.fill(lead + text, width, subsequent_indent=indent, break_long_words=False))
        if step:
            print(
                textwrap.fill(
                    step,
                    width,
                    initial_indent=indent + "-> ",
                    subsequent_indent=indent + "   ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )


def human_bytes(count: int | None) -> str:
    """Bytes in binary units, ``-`` where unknown."""
    if count is None:
        return "-"
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
