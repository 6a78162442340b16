"""Formats of arrays: which ones lie in FRACTAL_NZ."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

from npu_l0.kernels import EVERY
from npu_l0.library import IS_REAL, demand, operator

ND, NZ = 2, 29

CONFIG = SimpleNamespace(allow_internal_format=False)
"""``torch.npu.config``. Without internal formats torch_npu makes arrays in ND, and warns."""

_cast = set()


@operator("npu::npu_format_cast", EVERY)
def npu_format_cast(call):
    demand(
        IS_REAL or CONFIG.allow_internal_format, "internal formats are not allowed in this process"
    )
    demand(
        call.acl_format == NZ or (IS_REAL and call.acl_format == ND), f"format {call.acl_format}"
    )
    demand(call.input.is_contiguous(), "not contiguous")
    cast = call.input.clone()
    storage = cast.untyped_storage()
    _cast.add(storage._cdata)
    weakref.finalize(storage, _cast.discard, storage._cdata)
    return cast


@operator("npu::get_npu_format", EVERY)
def get_npu_format(call):
    return NZ if call.input.untyped_storage()._cdata in _cast else ND
