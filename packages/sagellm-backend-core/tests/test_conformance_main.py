import json

import pytest

from sagellm_backend.conformance import __main__ as command
from sagellm_backend.registry import get_provider


def test_the_reference_provider_passes(capsys):
    assert command.main(["--backend", "reference", "--seed", "5", "--dtype", "bf16"]) == 0
    assert "silu_and_mul" in capsys.readouterr().out


def test_a_failure_exits_1_and_says_where(capsys, monkeypatch):
    provider = get_provider("reference")
    provider.kernels.register_custom(
        "softmax", lambda x: provider.from_numpy(provider.to_numpy(x) * 2)
    )
    monkeypatch.setattr(command, "get_provider", lambda _name: provider)
    assert command.main(["--backend", "reference", "--dtype", "fp32"]) == 1
    assert "FAILED softmax[fp32-" in capsys.readouterr().out
    assert command.main(["--backend", "reference", "--dtype", "fp32", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {item["operation"] for item in findings if not item["passed"]} == {"softmax"}


def test_an_unknown_backend_exits_2(capsys):
    assert command.main(["--backend", "nothing-of-this-name"]) == 2
    assert "nothing-of-this-name" in capsys.readouterr().err


def test_the_backend_must_be_named():
    with pytest.raises(SystemExit):
        command.main([])
