"""Reference kernels of the norms, SwiGLU, rope and the write into the cache, in float64."""

from __future__ import annotations

import torch

from npu_l0.library import demand, operator

A2_A3 = range(220, 257)
EVERY = range(1000)
FLOATING = (torch.float32, torch.float16, torch.bfloat16)


def wide(x):
    """A float64 copy on the host."""
    return x.cpu().double()


def back(x, like):
    """A result in the dtype and on the device of an argument."""
    return x.to(like.dtype).to(like.device)


def _norm(x, gamma, epsilon):
    demand(2 <= x.dim() <= 8, f"input has {x.dim()} dimensions, not 2 to 8")
    demand(x.dtype is gamma.dtype and x.dtype in FLOATING, "dtypes of input and gamma differ")
    demand(gamma.shape == x.shape[-1:], "gamma is not the last dimension")
    value = wide(x)
    scale = (value.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return back(value * scale * wide(gamma), x), scale.float().to(x.device)


@operator("npu::npu_rms_norm", EVERY)
def npu_rms_norm(call):
    return _norm(call.input, call.gamma, call.epsilon)


@operator("npu::npu_add_rms_norm", A2_A3)
def npu_add_rms_norm(call):
    demand(call.x1.shape == call.x2.shape, "shapes differ")
    demand(call.x1.dtype is call.x2.dtype, "dtypes differ")
    total = back(wide(call.x1) + wide(call.x2), call.x1)
    return *_norm(total, call.gamma, call.epsilon), total


@operator("npu::npu_swiglu", A2_A3, range(200, 206))
def npu_swiglu(call):
    from npu_l0.library import CHIP

    demand(call.input.dtype in FLOATING, "no floating dtype")
    demand(CHIP.version >= 220 or call.input.dtype is torch.float32, "the 310P takes fp32")
    demand(call.input.shape[call.dim] % 2 == 0, "an odd dimension cannot be halved")
    gate, up = wide(call.input).chunk(2, call.dim)
    return back(torch.nn.functional.silu(gate) * up, call.input)


@operator("npu::npu_rotary_mul", A2_A3)
def npu_rotary_mul(call):
    x, cos, sin = call.input, call.r1, call.r2
    demand(x.dim() == cos.dim() == sin.dim() == 4, "not 4-D")
    demand(x.dtype is cos.dtype is sin.dtype, "dtypes differ")
    batch, tokens, heads, size = x.shape
    demand(size < 896 and size % 2 == 0, f"D is {size}")
    demand(batch * heads < 1000, f"B * N is {batch * heads}")
    demand(cos.shape == sin.shape == (1, tokens, 1, size), "r1 is not (1, S, 1, D)")
    demand(call.rotary_mode in ("half", "interleave"), "unknown rotary_mode")
    value = wide(x)
    if call.rotary_mode == "half":
        first, second = value.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-value[..., 1::2], value[..., ::2]), -1).flatten(-2)
    return back(value * wide(cos) + turned * wide(sin), x)


@operator("npu::npu_scatter_pa_kv_cache", A2_A3)
def npu_scatter_pa_kv_cache(call):
    demand(call.cache_mode == "Norm", f"caches are ND, not {call.cache_mode}")
    demand(call.slot_mapping.dtype is torch.int32, "slot_mapping is not int32")
    slots = call.slot_mapping.cpu().long()
    for new, cache in ((call.key, call.key_cache), (call.value, call.value_cache)):
        demand(new.dim() == 3 and cache.dim() == 4, "key is not 3-D, or its cache not 4-D")
        demand(new.is_contiguous() and cache.is_contiguous(), "not contiguous")
        demand(new.dtype is cache.dtype, "dtypes differ")
        demand(new.shape == (len(slots), *cache.shape[2:]), "shapes differ")
        flat = cache.view(-1, *cache.shape[2:])
        demand(slots.min() >= 0 and slots.max() < len(flat), "slot outside of the cache")
        _demand_equal_writes(new.cpu(), slots)
        flat.index_copy_(0, slots.to(flat.device), new)


def _demand_equal_writes(rows, slots):
    for slot in slots.unique():
        same = rows[slots == slot].view(torch.uint8)
        demand(bool((same == same[:1]).all()), f"slot {slot} is written twice")
