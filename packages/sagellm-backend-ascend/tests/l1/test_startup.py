"""What keeps the real torch_npu from starting, each said by name; the environment stays as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import os
    from sagellm_backend.ascend import startup
    from sagellm_backend.ascend.spec import SPEC, probe
    from sagellm_backend.errors import BackendError
    before = dict(os.environ)
    probe()
    try:
        provider = startup.create_ascend_backend()
        print("made", provider.capability().compute_capability)
    except BackendError as error:
        print(type(error).__name__, error, error.hint)
    assert dict(os.environ) == before
    import torch
    print(torch.ones(2).sum().item())
"""


def start(changes):
    environ = {**os.environ, **{name: value for name, value in changes.items() if value}}
    for name, value in changes.items():
        if value is None:
            environ.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, alive = done.stdout.splitlines()
    assert alive == "2.0"
    return " ".join(said)


def test_without_the_simulator_torch_itself_does_not_import():
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Failed to load the backend extension: torch_npu" in done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"LD_LIBRARY_PATH": None}, "CANN's libraries are not where the loader looks"),
        ({"ASCEND_OPP_PATH": None}, "CANN is not set up as a whole"),
        ({"ASCEND_SIM_INIT_FAULT": "507008"}, "CANN does not know this chip"),
        ({"ASCEND_SIM_SET_DEVICE_FAULT": "507033"}, "the device is busy or does not answer"),
        ({"ASCEND_SIM_SET_DEVICE_FAULT": "207006"}, "this user may not use the device"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "9"}, "ASCEND_RT_VISIBLE_DEVICES='9' hides"),
    ],
)
def test_a_fault_is_named(changes, said):
    answer = start(changes)
    assert answer.startswith("UnavailableError")
    assert said in answer


def test_a_device_that_others_have_filled_is_full():
    answer = start({"ASCEND_SIM_MEMORY_MB": "1"})
    assert answer.startswith("OutOfMemoryError")
    assert "the device is full" in answer
    assert "Stop the process that holds its memory" in answer
