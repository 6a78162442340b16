"""The backend ``ascend-l1``: the real provider on the real torch_npu, over a simulated device.

Its kernels are reference kernels, as the descriptor says by ``level: L1``. The name is another than
``ascend``, so that no report of it is taken for one of hardware.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from sagellm_backend import DType
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.spec import BackendSpec, Probe

HERE = Path(__file__).resolve().parent
REFERENCES = ("kernels", "formats", "attention")
THEIRS = "get_npu_format"
"""Needs no kernel: torch_npu knows the formats of its arrays."""
WORKSPACES = (
    "npu::_npu_fused_infer_attention_score_get_max_workspace",
    "atb::_npu_paged_attention_get_workspace",
)

_LIBRARIES = []


def probe():
    return Probe.available(*(DeviceInfo(index, "simulated NPU") for index in range(2)))


def build(config=None):
    """A provider, made as any engine gets it; then the kernels that it asks torch_npu for."""
    from sagellm_backend.ascend import startup

    startup.load()
    install()
    from sagellm_backend.ascend import provider

    for kind in (provider.AscendProvider, provider.AscendFP16Provider):
        kind.name, kind.simulated = "ascend-l1", True
        kind.flush_subnormals = (DType.BF16,)  # as the CPU's own products do
    return startup.create_ascend_backend(config)


def install():
    """Put reference kernels before torch_npu's, for aten and for the vendor's operators."""
    if str(HERE.parent / "l0") not in sys.path:
        sys.path.append(str(HERE.parent / "l0"))
    import torch
    from ascend_sim import kernels as reference

    for name in REFERENCES:
        import_module(f"npu_l0.{name}")
    from npu_l0.library import CHIP, SCHEMAS

    reference.install()
    CHIP.version = torch.npu.get_soc_version()
    for namespace in ("npu", "atb"):
        names = [name.partition("::")[2] for name in SCHEMAS if name.startswith(f"{namespace}::")]
        taken = [name for name in names if name != THEIRS]
        reference.take(namespace, taken, host=("seq_len", "context_lens"))
    _infer("npu::npu_format_cast", lambda x, *_, **__: torch.empty_like(x))
    attention = import_module("npu_l0.attention")
    for qualified in WORKSPACES:  # whose size depends on shapes and host lists alone
        _infer(qualified, getattr(attention, qualified.partition("::")[2]))


def _infer(qualified, function):
    """What torch_npu has no meta kernel for: the shapes of an operator's results."""
    import torch

    namespace, name = qualified.split("::")
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, function, "Meta", allow_override=True)
    _LIBRARIES.append(library)


SPEC = BackendSpec(
    name="ascend-l1",
    device_type="npu",
    priority=1,
    automatic=False,
    array_framework="torch",
    probe=probe,
    factory="l1_backend:build",
    contract=(1, 0),
    package="ascend-l1",
)
