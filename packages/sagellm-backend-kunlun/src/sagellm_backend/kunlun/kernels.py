"""The operations in plain Paddle, for any place that Paddle can compute on.

Paddle refuses most misuse by itself. What it would accept in silence, by broadcasting or by
promoting a dtype, is refused here by :class:`MisuseError`; dispatch turns that into our error, with
the reason that the operation table finds. Half types are computed in fp32 and rounded once, but for
products of bf16, which XPUs accumulate in fp32; those of fp16 they accumulate in int16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle.nn import functional

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kunlun.attention import attention, lying_of
from sagellm_backend.kunlun.misuse import (
    FLOATING,
    INDEX,
    MisuseError,
    bad_eps,
    check_rope,
    check_write,
)
from sagellm_backend.kunlun.sampling import greedy_sample, sample
from sagellm_backend.kunlun.softmax import softmax_of

_FP32, _FP16 = paddle.float32, paddle.float16


def embedding(ids: Any, table: Any) -> Any:
    if table.ndim != 2 or table.dtype not in FLOATING or 0 in table.shape:
        raise MisuseError
    if ids.dtype not in INDEX:
        raise MisuseError
    return functional.embedding(ids, table)


def linear(x: Any, weight: Any, bias: Any | None = None) -> Any:
    if weight.ndim != 2 or 0 in weight.shape or not x.ndim or x.shape[-1] != weight.shape[1]:
        raise MisuseError
    if x.dtype != weight.dtype or x.dtype not in FLOATING:
        raise MisuseError
    if bias is None:
        return _product(x, weight, transposed=True)
    if bias.ndim != 1 or bias.shape[0] != weight.shape[0] or bias.dtype != x.dtype:
        raise MisuseError
    product = paddle.matmul(_wide(x), _wide(weight), transpose_y=True)
    return _as(paddle.add(product, _wide(bias)), x)


def matmul(a: Any, b: Any) -> Any:
    if not a.ndim == b.ndim >= 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise MisuseError
    if a.dtype != b.dtype or a.dtype not in FLOATING or 0 in b.shape[-2:]:
        raise MisuseError
    return _product(a, b)


def _product(a: Any, b: Any, *, transposed: bool = False) -> Any:
    if a.dtype == _FP16:
        return _as(paddle.matmul(_wide(a), _wide(b), transpose_y=transposed), a)
    return paddle.matmul(a, b, transpose_y=transposed)


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    check_norm(x, weight, eps)
    wide = _wide(x)
    square = paddle.mean(paddle.square(wide), axis=-1, keepdim=True)
    scaled = paddle.multiply(wide, paddle.rsqrt(paddle.add(square, _scalar(eps, x))))
    return _as(paddle.multiply(scaled, _wide(weight)), x)


def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    check_same(x, residual)
    total = paddle.add(x, residual)
    return rms_norm(total, weight, eps), total


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    check_norm(x, weight, eps)
    check_same(weight, bias)
    wide = _wide(x)
    centred = paddle.subtract(wide, paddle.mean(wide, axis=-1, keepdim=True))
    variance = paddle.mean(paddle.square(centred), axis=-1, keepdim=True)
    scaled = paddle.multiply(centred, paddle.rsqrt(paddle.add(variance, _scalar(eps, x))))
    return _as(paddle.add(paddle.multiply(scaled, _wide(weight)), _wide(bias)), x)


def silu_and_mul(x: Any) -> Any:
    check_halves(x)
    gate, up = paddle.chunk(_wide(x), 2, axis=-1)
    return _as(paddle.multiply(functional.silu(gate), up), x)


def gelu(x: Any, approximate: str = "none") -> Any:
    if x.dtype not in FLOATING or approximate not in {"none", "tanh"}:
        raise MisuseError
    return _as(functional.gelu(_wide(x), approximate=approximate == "tanh"), x)


def softmax(x: Any) -> Any:
    if not x.ndim or not x.shape[-1] or x.dtype not in FLOATING:
        raise MisuseError
    return _as(softmax_of(_wide(x)), x)


def rope(q: Any, k: Any, positions: Any, cos_sin: Any, *, style: str = "neox") -> tuple[Any, Any]:
    check_rope(q, k, positions, cos_sin, style)
    if not q.shape[0]:
        return paddle.empty_like(q), paddle.empty_like(k)
    angles = paddle.unsqueeze(paddle.index_select(cos_sin, positions), 1)
    cos, sin = paddle.chunk(angles, 2, axis=-1)
    return _rotate(q, cos, sin, style), _rotate(k, cos, sin, style)


def _rotate(x: Any, cos: Any, sin: Any, style: str) -> Any:
    size = 2 * cos.shape[-1]
    wide = _wide(x)
    turned, rest = wide[..., :size], x[..., size:]
    if style == "neox":
        first, second = paddle.chunk(turned, 2, axis=-1)
    else:
        first, second = turned[..., ::2], turned[..., 1::2]
    pair = [
        paddle.subtract(paddle.multiply(first, cos), paddle.multiply(second, sin)),
        paddle.add(paddle.multiply(second, cos), paddle.multiply(first, sin)),
    ]
    if style == "neox":
        out = paddle.concat(pair, axis=-1)
    else:
        out = paddle.flatten(paddle.stack(pair, axis=-1), -2, -1)
    out = _as(out, x)
    return paddle.concat([out, rest], axis=-1) if rest.shape[-1] else out


def kv_write(key: Any, value: Any, key_cache: Any, value_cache: Any, slots: Any) -> None:
    check_write(key, value, key_cache, value_cache, slots)
    blocks, block_size = key_cache.shape[:2]
    if not (slots.shape[0] and blocks):
        return
    if slots.place.is_cpu_place():
        # Looked at before anything is written; elsewhere a look would stall the device.
        low, high = int(paddle.min(slots)), int(paddle.max(slots))
        if low < -1 or high >= blocks * block_size:
            raise InvalidArgumentError(
                f"kv_write: slots lie within {low} and {high}, the cache has slots 0 to "
                f"{blocks * block_size - 1}"
            )
    # Tokens to be skipped repeat the write of one that is kept, or what stands in slot 0 already:
    # which of equal writes comes last does not matter, and no shape depends on values.
    kept = paddle.greater_equal(slots, paddle.zeros_like(slots))
    donor = paddle.argmax(paddle.cast(kept, "int32"), axis=0, keepdim=True)
    filled = paddle.where(kept, slots, paddle.index_select(slots, donor))
    none_kept = paddle.logical_not(paddle.any(kept))
    slot = paddle.cast(paddle.clip(filled, min=0), "int64")
    size = paddle.full_like(slot, block_size)
    where = (paddle.floor_divide(slot, size), paddle.mod(slot, size))
    skipped = paddle.reshape(paddle.logical_not(kept), [-1, 1, 1])
    for new, cache in ((key, key_cache), (value, value_cache)):
        _put(_words(_compact(new)), cache, where, donor, skipped, none_kept)


def _put(new: Any, cache: Any, where: Any, donor: Any, skipped: Any, none_kept: Any) -> None:
    """Write tokens into the memory behind a cache, which Paddle would copy whole if it is strided."""
    lying, swapped = lying_of(cache)
    words = _words(lying)
    repeated = paddle.where(
        none_kept, words[0, :, 0] if swapped else words[0, 0], paddle.index_select(new, donor)
    )
    values = paddle.where(skipped, repeated, new)
    if not swapped:
        words.index_put_(where, values)
        return
    heads = paddle.unsqueeze(paddle.arange(new.shape[1], dtype="int64", device=new.place), 0)
    block, offset = (paddle.unsqueeze(part, 1) for part in where)
    words.index_put_((block, heads, offset), values)


def _words(array: Any) -> Any:
    """The same memory as integers, which keep every bit of a NaN.

    As int32 where rows divide: XPUs have no scattered writes of half types, nor of int16.
    """
    # Of a tensor with an offset, Paddle 3.3 displaces a view of another width.
    whole = array.shape[-1] % 2 == 0 and not array._offset()  # noqa: SLF001
    return array.view("int32" if array.dtype == _FP32 or whole else "int16")


def _compact(x: Any) -> Any:
    # Never contiguous(): that gives the caller's own tensor another memory.
    return x if x.is_contiguous() else paddle.clone(x)


def check_norm(x: Any, weight: Any, eps: Any) -> None:
    """Refuse what no norm takes."""
    if weight.ndim != 1 or not weight.shape[0] or not x.ndim or x.shape[-1] != weight.shape[0]:
        raise MisuseError
    if x.dtype != weight.dtype or x.dtype not in FLOATING or bad_eps(eps):
        raise MisuseError


def check_same(x: Any, other: Any) -> None:
    """Refuse two arrays of different shapes or dtypes."""
    if x.shape != other.shape or x.dtype != other.dtype:
        raise MisuseError


def check_halves(x: Any) -> None:
    """Refuse what does not split into a gate and what it gates."""
    if not x.ndim or x.shape[-1] % 2 or not x.shape[-1] or x.dtype not in FLOATING:
        raise MisuseError


def _wide(x: Any) -> Any:
    return x if x.dtype == _FP32 else paddle.cast(x, "float32")


def _as(x: Any, like: Any) -> Any:
    return x if x.dtype == like.dtype else paddle.cast(x, like.dtype)


def _scalar(value: float, like: Any) -> Any:
    return paddle.full([], value, "float32", device=like.place)


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (
        embedding,
        linear,
        matmul,
        rms_norm,
        add_rms_norm,
        layer_norm,
        silu_and_mul,
        gelu,
        softmax,
        rope,
        kv_write,
        attention,
        greedy_sample,
        sample,
    )
}
"""Every operation, by its name."""
