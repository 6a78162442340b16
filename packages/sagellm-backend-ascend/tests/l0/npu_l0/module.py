"""``torch.npu`` over the simulated torch device, with the traits of torch_npu that matter."""

from __future__ import annotations

from types import SimpleNamespace

import simdev

from npu_l0 import formats, graphs
from npu_l0.library import CHIP

NAMES = {101: "Ascend910A", 202: "Ascend310P3", 222: "Ascend910B2", 252: "Ascend910_9392"}


PUBLIC = (
    "Event",
    "ExternalEvent",
    "NPUGraph",
    "Stream",
    "graph",
    "graph_task_group_begin",
    "graph_task_group_end",
    "graph_task_update_begin",
    "graph_task_update_end",
    "is_current_stream_capturing",
)


def make():
    """A module that can be changed by tests."""
    formats.CONFIG.allow_internal_format = False
    names = {name: value for name, value in vars(simdev.module).items() if name[0] != "_"}
    names.update(
        **{name: getattr(graphs, name) for name in PUBLIC},
        config=formats.CONFIG,
        get_soc_version=lambda: CHIP.version,
        get_device_name=lambda device=None: NAMES.get(CHIP.version, "Ascend?"),
    )
    del names["CUDAGraph"]
    return SimpleNamespace(**names)
