"""A device that is lost, or full, while the real torch_npu works on it: ours, with what to do."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import json, sys
    import numpy as np
    from ascend_sim import faults
    from sagellm_backend import get_provider

    backend = get_provider("ascend-l1")
    array = backend.from_numpy(np.ones((4, 8), np.float32))
    kernel, stream = backend.get_kernel("silu_and_mul"), backend.create_stream()
    kernel(array)
    backend.synchronize()
    faults.lose(int(sys.argv[1]))
    calls = {
        "synchronize": backend.synchronize,
        "to_numpy": lambda: backend.to_numpy(array),
        "from_numpy": lambda: backend.from_numpy(np.ones(3, np.float32)),
        "stream": stream.synchronize,
        "launch": lambda: [kernel(array), backend.synchronize()],
        "close": backend.close,
    }
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            kind = type(error)
            said = [kind.__module__, kind.__name__, str(error), getattr(error, "hint", None)]
            print(json.dumps([name, *said]))
    assert backend.closed
"""
CALLS = ["synchronize", "to_numpy", "from_numpy", "stream", "launch", "close"]


def answers(code):
    """What each call says once every call of the runtime fails with ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [name for name, *_ in said] == CALLS, done.stderr
    for name, module, _, message, _ in said:
        assert module == "sagellm_backend.errors", (name, message)
    return {name: rest for name, _, *rest in said}


@pytest.mark.parametrize("code", [107022, 507010, 507054, 507899])
def test_a_lost_device_is_named_by_each_call_that_waits_for_it(code):
    found = answers(code)
    kind, _, hint = found.pop("launch")  # which torch_npu reports without a number
    assert kind == "UnavailableError"
    assert "lost to this process" in hint or "an earlier call" in hint
    for name, (kind, message, hint) in found.items():
        assert kind == "UnavailableError", message
        assert "lost to this process: end it and start another" in hint, (name, message)


def test_a_device_that_runs_full_while_it_works_is_out_of_memory():
    found = answers(207018)
    del found["launch"]
    assert {kind for kind, *_ in found.values()} == {"OutOfMemoryError"}
