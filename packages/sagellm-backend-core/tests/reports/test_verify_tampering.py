"""Verification of reports that were tampered with: each is refused for its own reason."""

from __future__ import annotations

import pytest

from sagellm_backend.conformance.digest import report_digest
from sagellm_backend.conformance.verify import verify

CLUMSY = {}
"""Changes of one who does not compute the digests anew, by name, with the reasons they meet."""

CAREFUL = {}
"""Changes of one who does."""


def tamper(table, *reasons):
    def note(function):
        table[function.__name__] = (function, reasons)
        return function

    return note


@tamper(CLUMSY, "the report was edited after its run", "the summary does not follow")
def an_outcome_was_edited(report):
    report["cases"][0]["outcome"] = "failed"


@tamper(CLUMSY, "the report was edited after its run")
def a_duration_was_edited(report):
    report["cases"][0]["seconds"] += 1


@tamper(CLUMSY, "cases were planned", "the digest of the plan does not fit")
def a_case_was_dropped(report):
    del report["cases"][4]


@tamper(CLUMSY, "the digest of the descriptor does not fit it")
def a_claim_was_dropped(report):
    report["provider"]["descriptor"]["supported_dtypes"] = []


@tamper(CLUMSY, "the verdict does not follow from the cases")
def a_failed_case_with_a_good_verdict(report):
    report["cases"][0]["outcome"] = "failed"
    report["summary"]["passed"] -= 1
    report["summary"]["failed"] += 1
    report["digest"] = report_digest(report)


@tamper(CLUMSY, "the summary does not follow from the cases")
def a_better_summary(report):
    report["summary"]["passed"] += 1
    report["digest"] = report_digest(report)


@tamper(CLUMSY, "the verdict does not follow from the cases")
def a_reason_was_struck_out(report):
    report["suite"]["dirty"] = True
    report["digest"] = report_digest(report)


@tamper(CAREFUL, "belongs to the plan and is not here")
def a_failing_case_was_left_out(report):
    del report["cases"][4]


@tamper(CAREFUL, "stands 2 times in the report")
def a_case_was_doubled(report):
    report["cases"].append(report["cases"][0])


@tamper(CAREFUL, "does not belong to the plan")
def a_case_was_invented(report):
    report["cases"].append({**report["cases"][0], "id": "core.invented"})


@tamper(CAREFUL, "is foreign to the profiles of this run")
def a_case_of_another_profile(report):
    report["cases"][0]["profile"] = "kv"


@tamper(CAREFUL, "not in the order of the plan")
def the_cases_were_sorted_anew(report):
    report["cases"].reverse()


@tamper(CAREFUL, "is not described as the suite has it")
def a_case_was_described_otherwise(report):
    report["cases"][0]["text"] = "It is very good."


@tamper(CAREFUL, "is not described as the suite has it")
def a_claim_was_called_a_refusal(report):
    report["cases"][0]["without"] = "graph"


@tamper(CAREFUL, "does not follow from that of the run")
def another_seed_was_drawn(report):
    report["cases"][0]["seed"] = "0x1"


@tamper(CAREFUL, "does not follow from that of the run")
def the_seed_of_the_run_was_edited(report):
    report["request"]["seed"] = "0x1"


@tamper(CAREFUL, "passed with r_max that is no number")
def an_infinite_error_passed(report):
    report["cases"][0]["metrics"]["r_max"] = None


@tamper(CAREFUL, "suite 2019.1 is unknown")
def a_suite_that_never_was(report):
    report["suite"]["version"] = "2019.1"


@tamper(CAREFUL, "was never published with the digest")
def a_suite_of_ones_own(report):
    report["suite"]["digest"] = "sha256:" + "0" * 64


@tamper(CAREFUL, "the level is L2, not L1")
def another_level(report):
    report["level"] = "L1"


@tamper(CAREFUL, "the level is L1, not L2")
def a_simulated_device_called_hardware(report):
    report["provider"]["descriptor"]["devices"][0]["facts"]["level"] = "L1"


@tamper(CAREFUL, "belongs to the plan and is not here")
def more_is_claimed_than_was_examined(report):
    report["provider"]["descriptor"]["supported_dtypes"].append("int8")


@tamper(CAREFUL, "The descriptor cannot be read")
def a_feature_that_there_is_not(report):
    report["provider"]["descriptor"]["features"] = ["flight"]


@tamper(CAREFUL, "is not applicable (capability_not_declared) is wrong or was left out")
def what_is_not_applicable_was_left_out(report):
    report["not_applicable"] = [
        item for item in report["not_applicable"] if item["reason"] != "capability_not_declared"
    ]


@tamper(CAREFUL, "a provider from the factory")
def a_factory_that_was_certified(report):
    report["request"]["factory"] = "module:function"


@tamper(CAREFUL, "no distribution is named")
def a_wheel_without_a_name(report):
    report["provider"]["distribution"] = None


@tamper(CAREFUL, "is not that of the descriptor")
def another_device(report):
    report["environment"]["device"]["type"] = "better"


@tamper(CAREFUL, "before it started")
def it_ended_before_it_started(report):
    report["finished"] = "2025-01-01T00:00:00Z"


@tamper(CAREFUL, "a time cannot be read")
def a_month_that_there_is_not(report):
    report["started"] = "2026-13-01T00:00:00Z"


@tamper(CAREFUL, "without a descriptor there can be no case")
def the_descriptor_was_removed(report):
    report["provider"]["descriptor"] = report["environment"]["device"] = report["level"] = None


@pytest.mark.parametrize("name", CLUMSY)
def test_clumsy_tampering_is_refused(passed, name):
    change, reasons = CLUMSY[name]
    change(passed)
    problems = verify(passed).problems
    for reason in reasons:
        assert any(reason in problem for problem in problems), problems


@pytest.mark.parametrize("name", CAREFUL)
def test_careful_tampering_is_refused(passed, make, name):
    change, reasons = CAREFUL[name]
    change(passed)
    make.reseal(passed)
    problems = verify(passed).problems
    for reason in reasons:
        assert any(reason in problem for problem in problems), problems
