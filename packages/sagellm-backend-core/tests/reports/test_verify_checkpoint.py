"""Verification of reports of machines with and without a checkpoint of a model."""

from __future__ import annotations

from sagellm_backend.capability import Feature, KVCapability
from sagellm_backend.conformance.llama import NEEDED
from sagellm_backend.conformance.report import build_report
from sagellm_backend.conformance.verdict import CHECKPOINTS, certificate_shortfalls
from sagellm_backend.conformance.verify import rerun_differences, verify
from sagellm_backend.dtypes import DType

LEFT_OUT = "model.a_checkpoint_speaks_as_the_reference"


def model_report(make, *, here, **changes):
    claims = make.capability(
        features=frozenset({Feature.KV_POOL}),
        operations=dict.fromkeys(NEEDED, (DType.FP32,)),
        kv=KVCapability(dtypes=(DType.FP32,), orders=("NHD",), packings=("separate",)),
    )
    digest = next(iter(CHECKPOINTS)) if here else None
    run = make.run(claims, profiles=["model"], here=here, checkpoint=digest, **changes)
    return make.from_wheel(build_report(run))


def test_reports_with_and_without_a_checkpoint_hold(make):
    for here in (True, False):
        report = model_report(make, here=here)
        assert verify(report).problems == ()
        assert any(case["id"].startswith(LEFT_OUT) for case in report["cases"]) is here


def test_no_certificate_rests_on_a_model_that_was_left_out(make):
    reasons = model_report(make, here=False)["verdict"]["reasons"]
    assert any(LEFT_OUT in reason for reason in reasons)
    assert not any(
        "checkpoint" in text for text in model_report(make, here=True)["verdict"]["reasons"]
    )


def test_no_certificate_rests_on_an_unknown_model(make):
    report = model_report(make, here=True)
    report["environment"]["checkpoint"] = "sha256:" + "7" * 64
    make.reseal(report)
    assert verify(report).problems == ()
    assert any("7777" in reason for reason in report["verdict"]["reasons"])


def test_a_model_that_failed_cannot_be_called_absent(make):
    """Not for itself, not among others that are there, and not without its digest."""
    report = model_report(make, here=True)
    taken = [case for case in report["cases"] if case["id"].startswith(LEFT_OUT)]
    report["cases"] = [case for case in report["cases"] if case not in taken]
    make.reseal(report)
    assert any("belongs to the plan" in item for item in verify(report).problems)
    gone = {"profile": "model", "reason": "checkpoint_absent", "detail": ""}
    report["not_applicable"] += [{**gone, "id": case["id"]} for case in taken]
    make.reseal(report)
    assert any("disagree" in item for item in verify(report).problems)
    other = model_report(make, here=True)
    other["not_applicable"].append({**gone, "id": "core.arrays_round_trip"})
    make.reseal(other)
    assert not verify(other).holds


def test_two_reports_of_different_models_make_no_certificate(make):
    first, second = model_report(make, here=True), model_report(make, here=True, seed=7)
    second["environment"]["checkpoint"] = "sha256:" + "7" * 64
    assert "the checkpoints differ" in certificate_shortfalls(first, second)
    assert any("checkpoint" in item for item in rerun_differences(first, second))
