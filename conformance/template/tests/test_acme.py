"""The suite is the test; this runs the part of it that a commit waits for."""

from sagellm_backend.conformance.runner import run


def test_acme_conforms():
    result = run("acme", profiles=["core", "kv", "stream"], depth="smoke")
    assert result.conformant, [(case.id, case.detail) for case in result.cases if not case.passed]
