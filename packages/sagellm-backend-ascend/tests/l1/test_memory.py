"""Memory of the two devices: limits, statistics, and addresses that the host cannot read."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from sagellm_backend import DType
from sagellm_backend.errors import OutOfMemoryError

MIB = 1 << 20


def test_the_limit_is_an_error_with_numbers_and_the_provider_works_on(backend):
    stats = backend.memory_stats()
    with pytest.raises(OutOfMemoryError) as caught:
        backend.empty((4096 * MIB,), DType.INT8)
    assert caught.value.code.value == "resource_exhausted"
    assert backend.memory_stats()["allocated_bytes"] == stats["allocated_bytes"]
    array = backend.from_numpy(np.arange(5, dtype=np.float32))
    assert backend.to_numpy(array).tolist() == [0, 1, 2, 3, 4]


def test_statistics_agree_with_torch_npu_and_the_device(backend):
    backend.clear_cache()
    free, total = torch.npu.mem_get_info(0)
    assert total == backend.capability().total_memory_bytes
    held, used = torch.npu.memory_allocated(0), backend.memory_stats()["allocated_bytes"]
    array = backend.empty((64 * MIB,), DType.INT8)
    assert backend.memory_stats()["allocated_bytes"] - used == 64 * MIB
    # torch_npu adds 32 bytes to what is asked for, and takes units of 512 bytes and of 2 MiB.
    assert torch.npu.memory_allocated(0) - held == 64 * MIB + 512
    assert free - torch.npu.mem_get_info(0)[0] == 66 * MIB
    del array
    backend.clear_cache()
    assert torch.npu.mem_get_info(0)[0] == free
    assert backend.memory_stats()["allocated_bytes"] == used


def test_two_devices_have_memory_of_their_own(backend):
    assert len(backend.capability().devices) == 2
    array = torch.arange(6.0).to("npu:1")
    assert array.to("npu:0").cpu().tolist() == array.cpu().tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="same device"):
        array + torch.ones(6, device="npu:0")


def test_the_host_cannot_read_what_lies_on_the_device():
    script = """
        import ctypes, torch
        array = torch.empty(4, device="npu")
        torch.npu.synchronize()
        print("made", flush=True)
        ctypes.string_at(array.data_ptr(), 4)
        print("read", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "made\n"
    assert done.returncode == -11
