"""Write the hardware tables of the READMEs from the published reports.

python tools/hardware_table.py            # rewrites what stands between the markers
python tools/hardware_table.py --check    # exit status 1 if that would change anything
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "conformance" / "reports"
BEGIN, END = "<!-- hardware:begin -->", "<!-- hardware:end -->"
HEADS = {
    "README.md": ("Backend", "Package", "Device", "Level", "Profiles proven", "Cases", "Report"),
    "README.zh-CN.md": ("后端", "包", "设备", "级别", "已证明的部分", "用例", "报告"),
}


def rows() -> list[tuple[str, ...]]:
    """Return one row for each published report, ordered by its place."""
    found = []
    for path in sorted(REPORTS.glob("*/*/*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        found.append(row(report, path.parent.relative_to(ROOT).as_posix()))
    return found


def row(report: dict[str, Any], place: str) -> tuple[str, ...]:
    """Return what a report says, as cells."""
    provider, summary = report["provider"], report["summary"]
    passed = [name for name, state in report["verdict"]["profiles"].items() if state == "passed"]
    return (
        f"`{provider['entry_point']}`",
        f"`{provider['distribution']}` {provider['version']}",
        report["environment"]["device"]["name"],
        report["level"],
        ", ".join(passed),
        f"{summary['passed']} / {report['plan']['cases']}",
        f"[{report['suite']['version']}]({place}/README.md)",
    )


def table(heads: tuple[str, ...]) -> str:
    """Return the Markdown between the markers."""
    lines = [heads, ("---",) * len(heads), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Rewrite or check; 1 if a check finds something."""
    stale = []
    for name, heads in HEADS.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        fresh = f"{before}{BEGIN}\n{table(heads)}\n{END}{after}"
        if fresh != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(fresh, encoding="utf-8")
    if "--check" in sys.argv and stale:
        print(f"{', '.join(stale)}: run python tools/hardware_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
