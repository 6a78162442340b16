"""The suite's own cases on the reference provider, in this process."""

import pytest

from sagellm_backend.conformance.case import plan
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.registry import get_provider

# Cases of several processes, and whole models, are the runner's to run.
PROFILES = ("core", "stream", "kv", "kernels", "attention", "graph")


def build(config):
    return get_provider("reference", config)


with build({}) as _provider:
    CAPABILITY = _provider.capability()
CASES = [case for case in plan(CAPABILITY, PROFILES, "stress").cases if case.world == 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case):
    exam = Exam(case, CAPABILITY, build, depth="standard")
    try:
        case.function(exam)
    finally:
        exam.close()
