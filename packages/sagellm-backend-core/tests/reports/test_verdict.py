"""Verdicts: what a report concludes, and what two of them are worth."""

from __future__ import annotations

import pytest

from sagellm_backend.capability import Feature
from sagellm_backend.conformance import verdict
from sagellm_backend.conformance.ledger import OUTCOMES
from sagellm_backend.conformance.report import build_report
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType

NEW_YEAR = verdict.moment("2026-03-20T00:00:00Z")


class TestVerdict:
    @pytest.mark.parametrize("outcome", OUTCOMES[1:])
    def test_any_other_outcome_than_a_pass_is_a_failure(self, passed, make, outcome):
        passed["cases"][3]["outcome"] = outcome
        found = make.reseal(passed)["verdict"]
        assert not found["conformant"]
        assert found["profiles"] == {"core": "failed"}
        assert f"1 {outcome}" in found["reasons"][0]

    def test_an_empty_plan_proves_nothing(self, passed, make):
        passed["cases"] = []
        assert make.reseal(passed)["verdict"]["reasons"][0] == "no case was planned"

    def test_refusals_alone_are_no_claim(self, make):
        report = build_report(make.run(profiles=("core", "kv")))
        assert report["verdict"]["profiles"] == {"core": "passed", "kv": "absent"}

    @pytest.mark.parametrize(
        ("path", "value", "reason"),
        [
            (("mode",), "dev", "development"),
            (("level",), "L1", "L2"),
            (("request", "depth"), "smoke", "depth smoke"),
            (("suite", "dirty"), True, "files"),
            (("provider", "editable"), True, "wheel"),
            (("provider", "record_digest"), None, "RECORD"),
            (("provider", "descriptor", "contract"), [2, 0], "contract 2"),
            (("provider", "descriptor", "features"), ["kv_pool"], "not examined: kv"),
        ],
    )
    def test_each_rule_hinders_a_certificate(self, passed, path, value, reason):
        assert passed["verdict"] == {
            "conformant": True,
            "certifiable": True,
            "profiles": {"core": "passed"},
            "reasons": [],
        }
        target = passed
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value
        found = verdict.derive_verdict(passed)
        assert found["conformant"]
        assert not found["certifiable"]
        assert len(found["reasons"]) == 1
        assert reason in found["reasons"][0]

    def test_the_level_is_that_of_the_device(self, make):
        data = make.capability().to_dict()
        assert verdict.level_of(data) == "L2"
        assert verdict.level_of({**data, "device_type": "cpu"}) == "L2"
        assert verdict.level_of({**data, "device_type": "reference"}) == "L1"
        assert verdict.level_of(None) is None
        simulated = DeviceInfo(1, "sim", facts={"level": "L1"})
        mixed = make.capability(devices=(*make.capability().devices, simulated))
        assert verdict.level_of(mixed.to_dict()) == "L1"

    def test_every_claim_makes_its_profile_mandatory(self, make):
        claims = make.capability(
            features=frozenset({Feature.STREAM, Feature.KV_POOL, Feature.GRAPH}),
            operations={"attention": (DType.FP32,)},
        )
        wanted = ("core", "stream", "kv", "kernels", "attention", "graph")
        assert verdict.claimed_profiles(claims.to_dict()) == wanted


class TestCertificate:
    @pytest.fixture
    def pair(self, passed, make):
        return passed, make.from_wheel(build_report(make.run(seed=7)))

    def test_two_good_reports_make_one(self, pair):
        assert verdict.certificate_shortfalls(*pair, NEW_YEAR) == []
        assert verdict.certificate_shortfalls(*reversed(pair), NEW_YEAR) == []

    def test_one_report_twice_makes_none(self, pair):
        found = verdict.certificate_shortfalls(pair[0], pair[0], NEW_YEAR)
        assert found == ["both runs have the same seed", "both reports are of one run"]

    def test_one_seed_is_the_published_one(self, make):
        pair = [make.from_wheel(build_report(make.run(seed=seed))) for seed in (7, 8)]
        (reason,) = verdict.certificate_shortfalls(*pair, NEW_YEAR)
        assert "published seed" in reason

    def test_a_flake_is_a_failure(self, pair, make):
        pair[1]["cases"][2]["outcome"] = "failed"
        make.reseal(pair[1])
        found = verdict.certificate_shortfalls(*pair, NEW_YEAR)
        assert found[0] == "the second report is not certifiable"
        assert "came to passed, then to failed" in found[1]

    def test_age_and_future(self, pair):
        late = verdict.certificate_shortfalls(*pair, verdict.moment("2026-06-01T00:00:00Z"))
        assert "91 days old" in late[0]
        early = verdict.certificate_shortfalls(*pair, verdict.moment("2026-01-01T00:00:00Z"))
        assert "future" in early[0]

    @pytest.mark.parametrize(
        ("part", "field", "value", "reason"),
        [
            ("suite", "digest", "sha256:" + "0" * 64, "suites"),
            ("provider", "version", "1.1", "providers"),
            ("provider", "descriptor_digest", "sha256:" + "0" * 64, "descriptors"),
            ("plan", "digest", "sha256:" + "0" * 64, "plans"),
            ("request", "depth", "stress", "depths"),
        ],
    )
    def test_both_are_of_one_thing(self, pair, part, field, value, reason):
        pair[1][part][field] = value
        assert verdict.certificate_shortfalls(*pair, NEW_YEAR) == [f"the {reason} differ"]
