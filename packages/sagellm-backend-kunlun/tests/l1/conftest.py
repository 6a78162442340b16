"""Tests at L1: the CPU build of Paddle over the simulated device, as ``nox -s kunlun-sim`` has it.

Where Paddle or the compiled device is not there, nothing here is collected.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
PLACES = "kunlun_sim:0,kunlun_sim:1"
if find_spec("paddle") and "kunlun_sim" in os.environ.get("CUSTOM_DEVICE_ROOT", ""):
    sys.path += [str(HERE), str(ROOT / "tools"), str(ROOT / "examples")]
    os.environ["SAGELLM_KUNLUN_PLACES"] = PLACES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle warns of compilers that it does not find
        import paddle
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device():
    """``paddle.device``, with the first simulated device for the current one."""
    paddle.set_device("kunlun_sim:0")
    yield paddle.device
    paddle.device.synchronize("kunlun_sim:0")
    paddle.device.synchronize("kunlun_sim:1")
    paddle.set_device("cpu")
