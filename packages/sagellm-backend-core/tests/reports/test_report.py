"""Reports: what is in them, what they conclude, how they are written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from sagellm_backend.capability import Feature
from sagellm_backend.conformance import identity, verdict
from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.descriptor import capability_of
from sagellm_backend.conformance.digest import canonical, digest_of, plan_digest
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.exam import case_seed
from sagellm_backend.conformance.files import write_all
from sagellm_backend.conformance.ledger import OUTCOMES
from sagellm_backend.conformance.report import build_report, write_reports
from sagellm_backend.conformance.result import STARTUP
from sagellm_backend.conformance.schema import violations
from sagellm_backend.conformance.verify import verify
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.registry import get_provider

NEW_YEAR = verdict.moment("2026-03-20T00:00:00Z")


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


class TestWriting:
    def test_writes_three_files_and_nothing_else(self, passed, tmp_path):
        folder = tmp_path / "new" / "folder"
        paths = write_reports(passed, folder)
        assert sorted(path.name for path in paths) == ["junit.xml", "report.html", "report.json"]
        assert sorted(folder.iterdir()) == sorted(paths)
        assert json.loads((folder / "report.json").read_text("utf-8")) == passed

    def test_keeps_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            (path,) = write_all(tmp_path, {"a": "text"})
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_text_that_is_no_unicode_is_written_escaped(self, tmp_path):
        (path,) = write_all(tmp_path, {"a": "\ud800"})
        assert path.read_bytes() == b"\\ud800"

    def test_what_was_there_stays_if_one_file_cannot_be_written(self, tmp_path):
        (tmp_path / "b").mkdir()
        (tmp_path / "a").write_text("old")
        with pytest.raises(HarnessError, match=r"a, b.*folder"):
            write_all(tmp_path, {"a": "new", "b": "new"})
        assert (tmp_path / "a").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_a_file_in_the_place_of_the_folder(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(HarnessError, match="--out"):
            write_all(tmp_path / "out", {"a": "text"})

    def test_a_full_disk_leaves_nothing(self, tmp_path):
        """The kernel's own limit on files stands for a disk that is full."""
        script = """
            import sys
            from pathlib import Path
            from sagellm_backend.conformance.errors import HarnessError
            from sagellm_backend.conformance.files import write_all
            try:
                write_all(Path(sys.argv[1]), {"a": "new", "b": "x" * 100_000})
            except HarnessError as error:
                print(error)
            """
        (tmp_path / "a").write_text("old")
        limit = (50_000, 50_000)
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        assert "Cannot write a, b" in found.stdout
        assert "File too large" in found.stdout
        assert found.stderr == ""
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_the_published_schema_is_the_one_that_ships():
    root = next((p for p in Path(__file__).parents if (p / "conformance/schema").is_dir()), None)
    if root is None:
        pytest.fail("conformance/schema is not above the tests")
    shipped = Path(identity.__file__).parent / "data/report-1.json"
    assert (root / "conformance/schema/report-1.json").read_bytes() == shipped.read_bytes()


def test_plans_of_other_profiles_differ(make):
    digests = {plan(make.capability(), [name]).digest for name in ("core", "kv", "kernels")}
    assert len(digests) == 3
