"""The page of a report: well-formed, self-contained, escaped, and it says everything."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from sagellm_backend.conformance.charts import (
    accuracy_chart,
    figure,
    percent,
    proportion,
    speed_chart,
)
from sagellm_backend.conformance.html import html_page
from sagellm_backend.conformance.report import build_report
from sagellm_backend.devices import DeviceInfo

VOID = {"meta", "br", "rect", "link", "hr", "img", "input"}


class Page(HTMLParser):
    """The tags of a page, which must be balanced, its attributes and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def failed(make):
    results = [
        {"outcome": "failed", "detail": make.markup},
        {"outcome": "crashed", "detail": "signal 11", "ranks": ("crashed", "incomplete")},
    ]
    return build_report(make.run(results=results))


def test_is_well_formed(passed, failed):
    for report in (passed, failed):
        page = Page(html_page(report))
        assert page.tags[0] == "html"
        assert page.tags.count("h1") == 1


def test_fetches_and_runs_nothing(failed):
    page = Page(html_page(failed))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    loading = ("src", "href", "srcset", "action", "xlink:href")
    assert not [item for item in page.attributes if item[0] in loading or item[0].startswith("on")]
    assert "url(" not in html_page(failed)
    assert "@import" not in html_page(failed)
    assert "default-src 'none'" in dict(page.attributes)["content"] or "Security" in str(
        page.attributes
    )


def test_foreign_text_is_escaped(failed, make):
    text = html_page(failed)
    assert "<script" not in text
    assert "Chip <One>" not in text
    assert "Chip <One>" in Page(text).text
    assert make.markup.split("\x1b")[0].strip() in Page(text).text


def test_values_of_attributes_cannot_break_out(passed):
    case = {
        **passed["cases"][0],
        "values": {"dtype": '"><b onclick="x"'},
        "metrics": {"r_max": 1.0, "bound": 8.0},
    }
    passed["cases"][0] = case
    page = Page(html_page(passed))
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_says_the_verdict_and_what_it_means(passed, failed):
    text = Page(html_page(passed)).text
    assert "✓ Conformant" in text
    assert "vendor-chip 1.0" in text
    assert "Fit for a certificate" in text
    assert "The cases ran on the device that is named above." in text
    text = Page(html_page(failed)).text
    assert "✗ Not conformant" in text
    assert "No certificate" in text
    for reason in failed["verdict"]["reasons"]:
        assert reason[1:] in text


def test_a_simulated_device_is_called_one(make):
    report = build_report(make.run(make.capability(device_type="reference")))
    page = html_page(report)
    assert "No hardware was examined." in Page(page).text
    assert re.search(r'aria-current="?true"?><b>L1', page)


def test_facts_of_devices_are_told(make):
    told = DeviceInfo(0, "a chip", facts={"level": "L1", "fp16": "L0 only"})
    report = build_report(make.run(make.capability(devices=(told,))))
    text = Page(html_page(report)).text
    assert "Facts of a chip" in text
    assert "fp16: L0 only; level: L1" in text


def test_every_failure_has_its_text_and_the_way_to_repeat_it(failed):
    text = Page(html_page(failed)).text
    for case in failed["cases"][:2]:
        assert f"replay report.json --case {case['id']}" in text
        assert case["seed"] in text
        assert case["text"].replace("`", "") in text
    assert "signal 11" in text
    assert "Ranks: crashed, incomplete." in text


def test_has_every_case_every_reason_and_every_digest(make):
    report = build_report(make.run(profiles=("core", "kv")))
    text = unescape(html_page(report))
    for item in (*report["cases"], *report["not_applicable"]):
        assert item["id"] in text
    for digest in (report["digest"], report["plan"]["digest"], report["suite"]["digest"]):
        assert digest in text
    assert "not claimed" in text


def test_a_report_of_a_provider_that_was_not_built(make):
    run = make.run()
    report = build_report(run)
    report["provider"]["descriptor"] = report["environment"]["device"] = report["level"] = None
    report["cases"], report["not_applicable"] = [], []
    text = Page(html_page(report)).text
    assert "no device" in text
    assert "Nothing ran, so nothing was proven." in text


class TestCharts:
    def case(self, name, dtype, **metrics):
        return {
            "id": f"kernels.{name}[{dtype}]",
            "text": "What <it> `means`.",
            "values": {"dtype": dtype},
            "metrics": metrics,
            "outcome": "passed",
        }

    def test_a_bar_is_the_worst_share_of_the_bound(self):
        cases = [self.case("linear", "bf16", r_max=r, bound=8.0) for r in (1.0, 4.0, 2.0)]
        chart = accuracy_chart(cases)
        assert 'class="s-bf16" width="50.00%"' in chart
        assert "50 %" in chart
        assert chart.count('class="track"') == 1

    def test_a_bar_over_the_bound_is_full_and_marked(self):
        chart = accuracy_chart([self.case("linear", "bf16", r_max=80.0, bound=8.0)])
        assert 'class="bad" width="100.00%"' in chart
        assert "10 times" in chart

    def test_without_numbers_there_is_no_chart(self):
        assert accuracy_chart([self.case("linear", "bf16")]) == ""
        assert accuracy_chart([self.case("copy", "bf16", r_max=0.0, bound=0.0)]) == ""
        assert speed_chart([self.case("linear", "bf16", r_max=1.0, bound=8.0)]) == ""

    def test_speed_is_shown_against_its_limit(self):
        chart = speed_chart([self.case("copy", "fp32", gb_per_s=6.0, gb_per_s_limit=8.0)])
        assert 'width="75.00%"' in chart
        assert "6.00 GB/s, 75 % of 8.00" in chart
        assert "fp32" in chart
        assert "What &lt;it&gt; <code>means</code>." in chart

    def test_a_speed_without_a_limit_has_no_bar(self):
        chart = speed_chart([self.case("speed_of_calls", "fp32", calls_per_s=6e6)])
        assert "<b>Calls</b>" in chart
        assert "6,000,000 calls/s" in chart
        assert "<svg" not in chart

    def test_a_speed_above_its_limit_fills_the_bar_and_is_told(self):
        chart = speed_chart([self.case("copy", "fp32", gb_per_s=9.0, gb_per_s_limit=6.0)])
        assert 'class="s-speed" width="100.00%"' in chart
        assert "150 % of 6.00" in chart
        assert 'class="bad"' not in chart

    def test_figures_have_three_digits(self):
        values = (0, 0.0000123, 0.09214, 6.1, 45.43, 144.3, 999.96, 455_812.4)
        assert [figure(value) for value in values] == [
            "0",
            "1.23e-05",
            "0.0921",
            "6.10",
            "45.4",
            "144",
            "1,000",
            "455,812",
        ]

    def test_every_speed_is_in_the_list_of_cases(self, passed):
        passed["cases"][0]["metrics"] = {"gb_per_s": 6.0, "gb_per_s_limit": 8.0, "r_max": 2.0}
        text = Page(html_page(passed)).text
        assert "Measured speed" in text
        assert text.count("6.00 GB/s, 75 % of 8.00") == 2
        assert "gb per s" not in text
        assert "largest error 2" in text

    def test_words_and_meters(self):
        assert [percent(share) for share in (0, 0.001, 0.47, 1, 3.24)] == [
            "0 %",
            "< 1 %",
            "47 %",
            "100 %",
            "3.24 times",
        ]
        assert 'class="good" width="100.00%"' in proportion(3, 3)
        assert 'class="good" width="97.00%"' in proportion(9999, 10_000)
