"""What failures of driver calls are told as."""

from __future__ import annotations

import pytest
import torch

from sagellm_backend.errors import OutOfMemoryError, UnavailableError
from sagellm_backend.torch_support.errors import check

ACL = (
    "synchronize:torch_npu/csrc/core/npu/NPUStream.cpp NPU function error: aclrt, error code is {}"
)
LOST = "start another"
LATE = "earlier call"


def failure(device, said):
    with (
        pytest.raises(UnavailableError, match="synchronize failed on") as caught,
        check("synchronize", device),
    ):
        raise RuntimeError(said)
    return caught.value.hint


@pytest.mark.parametrize(
    "said",
    [
        ACL.format(507015),
        ACL.format(507035) + ". The vector core execution is abnormal.",
        ACL.format(507054),
        ACL.format(507899),
        ACL.format(107022),
        "UCE ERROR. [ERROR] ERR00100 PTA call acl api failed",
        "FORCE STOP.",
        "CUDA error: an illegal memory access was encountered",
    ],
)
@pytest.mark.parametrize("device", ["npu:0", "cuda:1", "simdev:0"])
def test_a_lost_device_is_told_from_other_faults(device, said):
    assert LOST in failure(device, said)


def test_a_lost_npu_has_its_own_switch():
    hint = failure("npu:0", ACL.format(507015))
    assert "ASCEND_LAUNCH_BLOCKING=1" in hint
    assert "CUDA" not in hint


@pytest.mark.parametrize(
    ("device", "switch"), [("npu:3", "ASCEND_LAUNCH_BLOCKING"), ("cuda:0", "CUDA_LAUNCH_BLOCKING")]
)
def test_another_failure_may_be_that_of_an_earlier_call(monkeypatch, device, switch):
    said = ACL.format(207005)
    for unset in (None, "0", ""):
        monkeypatch.delenv(switch, raising=False)
        if unset is not None:
            monkeypatch.setenv(switch, unset)
        hint = failure(device, said)
        assert LATE in hint
        assert f"{switch}=1" in hint
    monkeypatch.setenv(switch, "1")
    assert failure(device, said) is None


def test_a_device_without_such_a_switch_has_no_hint():
    assert failure("cpu", "something") is None
    assert failure("simdev:0", "something") is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("NPU out of memory.")])
def test_too_little_memory_is_no_fault(error):
    with (
        pytest.raises(OutOfMemoryError, match="found no memory on npu:0 for 7 bytes"),
        check("allocation", "npu:0", 7),
    ):
        raise error
