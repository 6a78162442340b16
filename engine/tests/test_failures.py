"""What goes wrong reaches the engine's user, and nothing hangs unseen."""

from __future__ import annotations

import pytest
from checkpoints import make
from serving import serve

import sagellm_backend
from sagellm_backend.errors import BackendError
from sagellm_backend.torch_support.engine import EngineMethods


@pytest.mark.parametrize("kind", ["cuda", "ascend"])
def test_missing_hardware_is_said_by_start(tmp_path, kind):
    if sagellm_backend.is_provider_available(kind):
        kind = {"cuda": "ascend", "ascend": "cuda"}[kind]
    path = make(tmp_path, "llama")
    with pytest.raises(BackendError) as caught, serve(path, backend_type=kind):
        pass
    assert caught.value.hint
    assert kind in str(caught.value)


def test_a_kernel_that_cannot_be_had_is_said_by_start(tmp_path, monkeypatch):
    def refuse(provider):
        raise sagellm_backend.CapabilityError("linear", provider.name, "the test withholds it.")

    monkeypatch.setattr(EngineMethods, "_engine_kernels", refuse)
    monkeypatch.setattr(EngineMethods, "get_kernel", lambda provider, *_: refuse(provider))
    with pytest.raises(BackendError, match="withholds"), serve(make(tmp_path, "llama")):
        pass


def test_a_request_that_hangs_is_a_failure_with_stacks(tmp_path, monkeypatch):
    kernels = EngineMethods._engine_kernels

    def broken(provider):
        def linear(x, weight, bias=None):
            raise RuntimeError("planted")

        return {**kernels(provider), "linear": linear}

    monkeypatch.setattr(EngineMethods, "_engine_kernels", broken)
    with (
        pytest.raises(RuntimeError, match="planted"),  # stop() tells what generate() did not
        serve(make(tmp_path, "llama")) as server,
        pytest.raises(pytest.fail.Exception, match="no answer within"),
    ):
        server.run(server.engine.generate("AB", max_tokens=2), limit_s=5)
