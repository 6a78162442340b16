"""``torch.npu`` over the simulated torch device, with the traits of torch_npu that matter."""

from __future__ import annotations

from types import SimpleNamespace

import simdev

from npu_l0.library import CHIP

NAMES = {101: "Ascend910A", 202: "Ascend310P3", 222: "Ascend910B2", 252: "Ascend910_9392"}


class Stream(simdev.module.Stream):
    """A stream that takes a priority and cannot tell the range of them, as torch_npu's."""

    @staticmethod
    def priority_range():
        raise RuntimeError("NPU does not support Stream.priority_range() currently.")


def make():
    """A module that can be changed by tests."""
    names = {name: value for name, value in vars(simdev.module).items() if name[0] != "_"}
    names.update(
        Stream=Stream,
        NPUGraph=simdev.module.CUDAGraph,
        get_soc_version=lambda: CHIP.version,
        get_device_name=lambda device=None: NAMES.get(CHIP.version, "Ascend?"),
    )
    del names["CUDAGraph"]
    return SimpleNamespace(**names)
