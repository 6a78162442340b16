import json

from sagellm_backend.conformance import __main__ as command
from sagellm_backend.errors import UnavailableError
from sagellm_backend.registry import get_provider


def test_the_reference_provider_passes(capsys):
    assert command.main(["--backend", "reference", "--seed", "5", "--dtype", "bf16"]) == 0
    assert "silu_and_mul" in capsys.readouterr().out


def test_a_failure_exits_1_and_says_where(capsys, monkeypatch):
    def faulty(name):
        provider = get_provider(name)
        provider.kernels.register_custom(
            "softmax", lambda x: provider.from_numpy(provider.to_numpy(x) * 2)
        )
        return provider

    monkeypatch.setattr(command, "get_provider", faulty)
    assert command.main(["--backend", "reference", "--dtype", "fp32"]) == 1
    assert "FAILED softmax[fp32-" in capsys.readouterr().out
    assert command.main(["--backend", "reference", "--dtype", "fp32", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert set(findings) == {"reference"}
    failed = [item["operation"] for item in findings["reference"] if not item["passed"]]
    assert set(failed) == {"softmax"}


def test_an_unknown_backend_exits_2(capsys):
    assert command.main(["--backend", "nothing-of-this-name"]) == 2
    assert "nothing-of-this-name" in capsys.readouterr().err


def test_a_backend_that_is_not_available_exits_3(capsys, monkeypatch):
    def unavailable(name):
        raise UnavailableError(f"{name} is absent")

    monkeypatch.setattr(command, "get_provider", unavailable)
    assert command.main(["--backend", "cuda"]) == 3
    assert "cuda is absent" in capsys.readouterr().err


def test_without_a_name_every_available_backend_is_examined(monkeypatch):
    asked = []

    def note(name):
        asked.append(name)
        return get_provider(name)

    monkeypatch.setattr(command, "get_provider", note)
    monkeypatch.setattr(command, "examine_operations", lambda *_: [])
    assert command.main([]) == 0
    assert "reference" in asked
