"""Faults of norms, activations and rotations."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.member import kernel_fault
from sagellm_backend.ops.activation import gelu, silu_and_mul
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.norm import add_rms_norm, layer_norm, rms_norm
from sagellm_backend.ops.rope import rope

_RMS_NORM = ("kernels.rms_norm",)
_ADD_RMS_NORM = ("kernels.add_rms_norm",)
_LAYER_NORM = ("kernels.layer_norm",)
_SILU = ("kernels.silu_and_mul",)
_GELU = ("kernels.gelu",)
_SOFTMAX = ("kernels.softmax",)
_ROPE = ("kernels.rope",)


@kernel_fault("rms_norm", "An RMS norm leaves eps out", kills=_RMS_NORM)
def rms_norm_without_eps(x: Array, weight: Array, eps: float) -> Array:
    del eps
    return rms_norm(x, weight, 0.0)


@kernel_fault("rms_norm", "An RMS norm adds eps to the root", kills=_RMS_NORM)
def rms_norm_adds_eps_late(x: Array, weight: Array, eps: float) -> Array:
    wide = f64(x)
    root = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True))
    found: Array = wide / (root + eps) * f64(weight)
    return found


@kernel_fault("rms_norm", "An RMS norm rounds eps to the storage dtype", kills=_RMS_NORM)
def rms_norm_rounds_eps(x: Array, weight: Array, eps: float) -> Array:
    return rms_norm(x, weight, float(np.asarray(eps).astype(x.dtype)))


@kernel_fault(
    "rms_norm", "An RMS norm of a half type takes 1e-5 for eps, whatever is asked", kills=_RMS_NORM
)
def rms_norm_has_an_eps_of_its_own(x: Array, weight: Array, eps: float) -> Array:
    return rms_norm(x, weight, eps if x.dtype == np.float32 else 1e-5)


@kernel_fault(
    "rms_norm", "An RMS norm squares in the storage dtype, which overflows in fp16", kills=_RMS_NORM
)
def rms_norm_squares_in_its_dtype(x: Array, weight: Array, eps: float) -> Array:
    square = np.mean(f64(x * x), axis=-1, keepdims=True)
    found: Array = f64(x) / np.sqrt(square + eps) * f64(weight)
    return found


@kernel_fault("rms_norm", "An RMS norm multiplies by 1 + weight", kills=_RMS_NORM)
def rms_norm_adds_one(x: Array, weight: Array, eps: float) -> Array:
    return rms_norm(x, 1 + f64(weight), eps)


@kernel_fault("add_rms_norm", "A fused norm returns x for the new residual", kills=_ADD_RMS_NORM)
def add_rms_norm_returns_x(
    x: Array, residual: Array, weight: Array, eps: float
) -> tuple[Array, Array]:
    return add_rms_norm(x, residual, weight, eps)[0], f64(x)


@kernel_fault("add_rms_norm", "A fused norm reads x before the addition", kills=_ADD_RMS_NORM)
def add_rms_norm_reads_x(
    x: Array, residual: Array, weight: Array, eps: float
) -> tuple[Array, Array]:
    return rms_norm(x, weight, eps), f64(x) + f64(residual)


@kernel_fault("add_rms_norm", "A fused norm takes 1e-6 for eps", kills=_ADD_RMS_NORM)
def add_rms_norm_has_an_eps_of_its_own(
    x: Array, residual: Array, weight: Array, eps: float
) -> tuple[Array, Array]:
    del eps
    return add_rms_norm(x, residual, weight, 1e-6)


@kernel_fault("layer_norm", "A layer norm takes E[x^2] - E[x]^2 in fp32", kills=_LAYER_NORM)
def layer_norm_cancels(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    narrow = x.astype(np.float32)
    mean = narrow.mean(axis=-1, keepdims=True)
    variance = (narrow * narrow).mean(axis=-1, keepdims=True) - mean * mean
    found: Array = f64((narrow - mean) / np.sqrt(variance + np.float32(eps)))
    return found * f64(weight) + f64(bias)


@kernel_fault("layer_norm", "A layer norm divides by n - 1", kills=_LAYER_NORM)
def layer_norm_is_unbiased(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    wide = f64(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    count = max(wide.shape[-1] - 1, 1)
    variance = (centred * centred).sum(axis=-1, keepdims=True) / count
    found: Array = centred / np.sqrt(variance + eps) * f64(weight) + f64(bias)
    return found


@kernel_fault("layer_norm", "A layer norm forgets its bias", kills=_LAYER_NORM)
def layer_norm_forgets_bias(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return layer_norm(x, weight, np.zeros_like(bias), eps)


@kernel_fault("silu_and_mul", "The gate is taken from the second half", kills=_SILU)
def silu_gates_second_half(x: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    return silu_and_mul(np.concatenate([second, first], axis=-1))


@kernel_fault("silu_and_mul", "exp() of the gate overflows to NaN", kills=_SILU)
def silu_overflows(x: Array) -> Array:
    gate, up = np.split(x.astype(np.float32), 2, axis=-1)
    power = np.exp(gate)
    found: Array = f64(gate * (power / (1 + power)) * up)
    return found


@kernel_fault("gelu", "A gelu takes the tanh approximation always", kills=_GELU)
def gelu_approximates(x: Array, approximate: str = "none") -> Array:
    del approximate
    return gelu(x, "tanh")


@kernel_fault("gelu", "A gelu takes no approximation, also where it is asked for", kills=_GELU)
def gelu_ignores_approximation(x: Array, approximate: str = "none") -> Array:
    del approximate
    return gelu(x, "none")


@kernel_fault("softmax", "A softmax does not subtract the maximum", kills=_SOFTMAX)
def softmax_overflows(x: Array) -> Array:
    powers = np.exp(x.astype(np.float32))
    found: Array = f64(powers / powers.sum(axis=-1, keepdims=True))
    return found


@kernel_fault("softmax", "A softmax sums over the first 4096 only", kills=_SOFTMAX)
def softmax_ignores_tail(x: Array) -> Array:
    wide = f64(x)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True, initial=-np.inf))
    found: Array = powers / powers[..., :4096].sum(axis=-1, keepdims=True)
    return found


@kernel_fault("softmax", "A softmax adds up in the storage dtype", kills=_SOFTMAX)
def softmax_sums_in_its_dtype(x: Array) -> Array:
    wide = f64(x)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True, initial=-np.inf)).astype(x.dtype)
    total = powers[..., :1].astype(x.dtype)
    for column in np.split(powers, max(x.shape[-1], 1), axis=-1)[1:]:
        total = total + column
    found: Array = f64(powers) / f64(total)
    return found


@kernel_fault("rope", "A rotation pairs neighbours whatever the style", kills=_ROPE)
def rope_is_always_gptj(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    del style
    return rope(q, k, positions, cos_sin, style="gptj")


@kernel_fault("rope", "A rotation turns the other way", kills=_ROPE)
def rope_turns_back(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    cos, sin = np.split(cos_sin, 2, axis=-1)
    return rope(q, k, positions, np.concatenate([cos, -sin], axis=-1), style=style)


@kernel_fault("rope", "A rotation rounds its table to the dtype", kills=_ROPE)
def rope_rounds_its_table(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    return rope(q, k, positions, cos_sin.astype(q.dtype), style=style)


@kernel_fault("rope", "A rotation clears the dimensions that it does not turn", kills=_ROPE)
def rope_clears_the_rest(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    turned = rope(q, k, positions, cos_sin, style=style)
    for array in turned:
        array[..., cos_sin.shape[-1] :] = 0
    return turned


@kernel_fault("rope", "Keys are not rotated", kills=_ROPE)
def rope_leaves_keys(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    return rope(q, k, positions, cos_sin, style=style)[0], f64(k)
