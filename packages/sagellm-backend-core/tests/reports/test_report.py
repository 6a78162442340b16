"""Reports: what is in them, and what identifies them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sagellm_backend.conformance import identity, verdict
from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.descriptor import capability_of
from sagellm_backend.conformance.digest import canonical, digest_of, plan_digest
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.result import STARTUP
from sagellm_backend.conformance.schema import violations
from sagellm_backend.conformance.verify import verify
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.registry import get_provider


class TestBuilding:
    def test_fits_its_schema_and_holds(self, make):
        report = build_report(make.run())
        assert list(violations(report)) == []
        assert verify(report).problems == ()
        assert report["verdict"]["conformant"]
        assert report["request"]["seed"] == hex(verdict.CERTIFICATION_SEED)

    def test_says_what_the_suite_says_of_a_case(self, make):
        run = make.run()
        for case, record in zip(run.plan.cases, build_report(run)["cases"], strict=True):
            assert (record["id"], record["text"]) == (case.id, case.text)

    def test_the_digest_of_the_plan_is_the_one_of_before_the_run(self, make):
        run = make.run()
        report = build_report(run)
        assert report["plan"]["digest"] == run.plan.digest
        assert plan_digest(report, [case.id for case in run.plan.cases]) == run.plan.digest

    def test_a_case_without_result_is_missing(self, make):
        run = make.run()
        report = build_report(replace(run, cases=run.cases[1:]))
        assert report["cases"][0]["outcome"] == "missing"
        assert report["summary"]["missing"] == 1
        assert not report["verdict"]["conformant"]

    @pytest.mark.parametrize("change", ["twice", "foreign"])
    def test_refuses_results_that_the_plan_does_not_explain(self, make, change):
        run = make.run()
        extra = run.cases[0] if change == "twice" else replace(run.cases[0], id="core.other")
        with pytest.raises(HarnessError, match=r"twice|planned"):
            build_report(replace(run, cases=(*run.cases, extra)))

    def test_a_metric_that_is_not_finite_is_null_and_no_pass(self, make):
        report = build_report(make.run(results=[{"metrics": {"r_max": float("nan")}}]))
        assert report["cases"][0]["metrics"] == {"r_max": None}
        assert not report["verdict"]["conformant"]
        assert "no number" in report["verdict"]["reasons"][0]

    def test_a_provider_that_cannot_be_built_has_a_report_too(self, make):
        run = make.run()
        start = replace(
            run.cases[0],
            id=STARTUP,
            outcome="timeout",
            detail="no end",
            seed=case_seed(run.seed, STARTUP),
        )
        nothing = replace(run.plan, cases=(), not_applicable=())
        report = build_report(replace(run, descriptor=None, cases=(start,), plan=nothing))
        assert list(violations(report)) == []
        assert verify(report).problems == ()
        assert report["level"] is None
        assert report["verdict"]["profiles"] == {"core": "failed"}

    def test_a_factory_or_a_selection_is_for_development(self, make):
        report = build_report(make.run(factory="module:function", complete=False))
        assert report["mode"] == "dev"
        assert not report["verdict"]["certifiable"]
        assert report["provider"]["editable"]

    def test_records_overrides_and_no_other_variable(self, make, monkeypatch):
        monkeypatch.setenv("SAGELLM_BACKENDS_ALLOW", "chip")
        monkeypatch.setenv("SECRET", "word")
        assert build_report(make.run())["environment"]["overrides"] == {
            "SAGELLM_BACKENDS_ALLOW": "chip"
        }


class TestDigests:
    def test_canonical_form(self):
        assert canonical({"b": [1, 0.1], "a": "é"}) == b'{"a":"\\u00e9","b":[1,0.1]}'
        assert digest_of({}) == (
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        )
        with pytest.raises(ValueError, match="JSON"):
            canonical({"a": float("nan")})

    def test_survives_a_file(self, passed):
        assert digest_of(json.loads(json.dumps(passed, indent=3))) == digest_of(passed)

    def test_a_suite_of_other_sources_has_another(self, tmp_path):
        for folder in ("conformance/zoo", "ops"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "ops/table.py").write_text("a = 1\n")
        first = identity.suite_digest(tmp_path)
        (tmp_path / "conformance/html.py").write_text("only shows\n")
        (tmp_path / "conformance/zoo/late.py").write_text("only proves the suite\n")
        assert identity.suite_digest(tmp_path) == first
        (tmp_path / "ops/table.py").write_text("a = 2\n")
        assert identity.suite_digest(tmp_path) != first

    def test_the_provider_is_named_by_its_distribution(self):
        found = identity.provider_identity("numpy")
        assert found["distribution"] == "numpy"
        assert not found["editable"]
        assert found["record_digest"].startswith("sha256:")
        assert identity.provider_identity("no-such-thing")["editable"]


class TestDescriptor:
    def test_returns_from_plain_data(self, make):
        for claims in (make.capability(), get_provider("reference").capability()):
            data = json.loads(json.dumps(claims.to_dict()))
            assert capability_of(data).to_dict() == claims.to_dict()

    @pytest.mark.parametrize(
        "change",
        [
            {"features": ["flight"]},
            {"kv": {}},
            {"operations": {"linear": ["fp1"]}},
            {"contract": [1]},
            {"devices": [{"index": 0}]},
            {"surplus": 1},
        ],
    )
    def test_refuses_what_is_no_descriptor(self, make, change):
        with pytest.raises(InvalidArgumentError, match="descriptor"):
            capability_of({**make.capability().to_dict(), **change})


def test_the_published_schema_is_the_one_that_ships():
    root = next((p for p in Path(__file__).parents if (p / "conformance/schema").is_dir()), None)
    if root is None:
        pytest.fail("conformance/schema is not above the tests")
    shipped = Path(identity.__file__).parent / "data/report-1.json"
    assert (root / "conformance/schema/report-1.json").read_bytes() == shipped.read_bytes()


def test_plans_of_other_profiles_differ(make):
    digests = {plan(make.capability(), [name]).digest for name in ("core", "kv", "kernels")}
    assert len(digests) == 3
