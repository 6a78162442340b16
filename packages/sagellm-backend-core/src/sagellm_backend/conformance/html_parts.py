"""The tables and lists of the page of a report, each as HTML with all text escaped."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sagellm_backend.conformance.charts import proportion, prose, speed_text
from sagellm_backend.conformance.diff import SPEEDS

_STATUS = {
    "passed": "passed",
    "failed": "failed",
    "absent": "not claimed",
    "not_applicable": "no cases",
}
_PROFILES = {
    "core": "discovery, descriptor, memory, copies, errors",
    "stream": "streams, events, ordering",
    "kv": "KV pools, block copies, isolation",
    "kernels": "operations against float64",
    "attention": "prefill, decode, paging, masks",
    "graph": "capture and replay",
    "collective": "groups of processes",
    "model": "tokens of a whole model",
}
_REASONS = {
    "capability_not_declared": "The capability is not declared",
    "capability_declared": "Cases of refusal, for a capability that is declared",
    "device_count": "More devices are needed",
    "no_values": "Nothing of the kind is declared",
    "condition": "The descriptor does not fit the case",
    "depth": "Run at a greater depth only",
    "profile_not_requested": "The profile was not asked for",
    "checkpoint_absent": "The machine has no checkpoint of a model",
}
_MEASURES = {"r_max": "largest error", "r_rms": "mean error", "bound": "bound"}


def profile_table(report: Mapping[str, Any]) -> str:
    """One line for each requested profile: status, claims proven, refusals proven."""
    rows = []
    for profile, status in report["verdict"]["profiles"].items():
        cases = [case for case in report["cases"] if case["profile"] == profile]
        claims = [case for case in cases if not case["without"]]
        refusals = [case for case in cases if case["without"]]
        rows.append(
            f'<tr><th scope="row"><span class="profile">{escape(profile)}</span><br>'
            f'<span class="case-text">'
            f"{escape(_PROFILES.get(profile, ''))}</span></th>"
            f"<td>{_tag(status, _STATUS[status])}</td>"
            f'<td class="num" data-name="claims">{_ratio(claims)}</td>'
            f'<td class="num" data-name="refusals">{_ratio(refusals)}</td>'
            f"<td>{proportion(_passed(cases), len(cases)) if cases else ''}</td></tr>"
        )
    head = (
        "<thead><tr><th>Profile</th><th>Status</th><th class=num>Claims proven</th>"
        "<th class=num>Refusals proven</th><th></th></tr></thead>"
    )
    return f'<table class="wide">{head}<tbody>{"".join(rows)}</tbody></table>'


def faults(cases: Iterable[Mapping[str, Any]]) -> str:
    """Every case that did not pass, with all that is known of it and the way to repeat it."""
    bad = [case for case in cases if case["outcome"] != "passed"]
    if not bad:
        return ""
    return f"<section><h2>Failures</h2>{''.join(map(_fault, bad))}</section>"


def claims(descriptor: Mapping[str, Any] | None) -> str:
    """What the descriptor claims: features, operations by dtype, KV pools, collectives."""
    if descriptor is None:
        return ""
    by_dtypes: dict[str, list[str]] = {}
    for name, dtypes in sorted(descriptor["operations"].items()):
        by_dtypes.setdefault(" ".join(dtypes) or "no dtype", []).append(name)
    kv = descriptor["kv"]
    pools = (
        f"{_list(kv.get('dtypes', ()))} in order {_list(kv.get('orders', ()))}, "
        f"{_list(kv.get('packings', ()))}"
    )
    limits = [f"{name}: {value:,}" for name, value in descriptor["limits"].items() if value]
    rows = [
        ("Dtypes", _list(descriptor["supported_dtypes"])),
        ("Features", _list(descriptor["features"])),
        *((f"Operations in {dtypes}", _list(names)) for dtypes, names in by_dtypes.items()),
        ("KV pools", pools if kv.get("dtypes") else "none"),
        ("Collectives", _list(descriptor["supported_collectives"])),
        ("Limits", _list(limits) if limits else "none stated"),
        ("Subnormal numbers flushed in", _list(descriptor["flush_subnormals"])),
        *((f"Facts of {device['name']}", _facts(device["facts"])) for device in _told(descriptor)),
    ]
    return (
        "<section><h2>What the provider claims</h2>"
        f'<p class="lead">Its descriptor in short; the whole of it is in report.json.</p>'
        f'<div class="card">{_pairs(rows)}</div></section>'
    )


def _told(descriptor: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (device for device in descriptor["devices"] if device["facts"])


def _facts(facts: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in sorted(facts.items()))


def case_lists(cases: Sequence[Mapping[str, Any]], profiles: Iterable[str]) -> str:
    """All cases by profile, folded."""
    texts = []
    for profile in dict.fromkeys((*profiles, *(case["profile"] for case in cases))):
        members = [case for case in cases if case["profile"] == profile]
        if members:
            rows = "".join(map(_case_row, members))
            texts.append(
                f"<details><summary>{escape(profile)} "
                f'<span class="count">{_passed(members):,} of {len(members):,} passed</span></summary>'
                f'<div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
            )
    return "".join(texts) or "<p>No case was planned.</p>"


def not_applicable(items: Sequence[Mapping[str, Any]]) -> str:
    """The cases that did not run, by reason, folded."""
    if not items:
        return ""
    texts = []
    for reason, count in Counter(item["reason"] for item in items).most_common():
        rows = "".join(
            f"<tr><td><code>{escape(item['id'])}</code></td><td>{escape(item['detail'])}</td></tr>"
            for item in items
            if item["reason"] == reason
        )
        texts.append(
            f'<details><summary>{escape(_REASONS[reason])} <span class="count">{count:,}</span>'
            f'</summary><div class="scroll"><table><tbody>{rows}</tbody></table></div></details>'
        )
    return (
        "<section><h2>Not applicable</h2>"
        '<p class="lead">Settled before the first case ran. Nothing is skipped '
        f'at run time: that would be a failure.</p><div class="card">{"".join(texts)}</div></section>'
    )


def environment(report: Mapping[str, Any]) -> str:
    """Environment, request and digests."""
    world, provider, suite = report["environment"], report["provider"], report["suite"]
    origin = "a source tree" if provider["editable"] else "an installed wheel"
    versions = (f"{name} {version}" for name, version in world["versions"].items())
    overrides = [f"{name}={value}" for name, value in world["overrides"].items()]
    rows = [
        ("Python", world["python"]),
        ("Platform", world["platform"]),
        ("Versions", _list(versions)),
        ("Overrides", _list(overrides)),
        ("Checkpoint of the model profile", world["checkpoint"] or "none"),
        ("Provider runs from", origin),
        ("Mode", report["mode"]),
        ("Time limit of a case", f"{report['request']['case_timeout_s']:g} s"),
        ("Started, finished", f"{report['started']}, {report['finished']}"),
        ("Run", report["run_id"]),
        ("Suite" + (", changed" if suite["dirty"] else ""), suite["digest"]),
        ("Plan", report["plan"]["digest"]),
        ("Descriptor", provider["descriptor_digest"]),
        ("RECORD of the provider", provider["record_digest"] or "none"),
        ("Report", report["digest"]),
    ]
    return _pairs(rows)


def memory(count: int | None) -> str:
    """Bytes of memory as a person says it; "" where unknown."""
    if not count:
        return ""
    return f"{count / 2**30:.0f} GiB" if count >= 2**33 else f"{count / 2**20:,.0f} MiB"


def seconds(total: float) -> str:
    """A duration as a person says it."""
    if total >= 90:
        return f"{int(total // 60)} min {int(total % 60)} s"
    return f"{total:.0f} s" if total >= 10 else f"{total:.1f} s"


def _fault(case: Mapping[str, Any]) -> str:
    ranks = f" Ranks: {_list(case['ranks'])}." if case["ranks"] else ""
    detail = f"<pre>{escape(case['detail'])}</pre>" if case["detail"] else ""
    replay = f"sagellm-backend conformance replay report.json --case {shlex.quote(case['id'])}"
    return (
        f'<div class="card fault"><h3><code>{escape(case["id"])}</code> '
        f"{_tag('failed', case['outcome'].replace('_', ' '))}</h3>"
        f'<p class="case-text">To be proven: {prose(case["text"])}{escape(ranks)}</p>{detail}'
        f'<p class="replay">Repeat it: <code>{escape(replay)}</code> (seed of the case '
        f"<code>{escape(case['seed'])}</code>)</p></div>"
    )


def _case_row(case: Mapping[str, Any]) -> str:
    measures = ", ".join(_measures(case["metrics"]))
    passed = case["outcome"] == "passed"
    word = "passed" if passed else case["outcome"].replace("_", " ")
    return (
        f'<tr><td><code>{escape(case["id"])}</code><br><span class="case-text">'
        f"{prose(case['text'])}{f'<br>{escape(measures)}' if measures else ''}</span></td>"
        f"<td>{_tag('passed' if passed else 'failed', word)}</td>"
        f'<td class="num">{seconds(case["seconds"])}</td></tr>'
    )


def _measures(metrics: Mapping[str, Any]) -> Iterator[str]:
    for name, value in metrics.items():
        if name in SPEEDS and value is not None:
            yield speed_text(metrics, name)
        elif name.removesuffix("_limit") not in SPEEDS:
            yield f"{_MEASURES.get(name, name.replace('_', ' '))} {_figure(value)}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<table class="wide"><tbody>{lines}</tbody></table>'


def _tag(kind: str, word: str) -> str:
    return f'<span class="tag {escape(kind, quote=True)}">{escape(word)}</span>'


def _ratio(cases: Sequence[Mapping[str, Any]]) -> str:
    return f"{_passed(cases):,} of {len(cases):,}" if cases else "none"


def _passed(cases: Iterable[Mapping[str, Any]]) -> int:
    return sum(case["outcome"] == "passed" for case in cases)


def _list(words: Iterable[Any]) -> str:
    return ", ".join(map(str, words)) or "none"
