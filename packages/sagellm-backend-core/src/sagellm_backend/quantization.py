"""Quantised weights on the host: what the operations linear_w8a16, linear_w8a8, linear_w4a16 take."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.checks import check_int
from sagellm_backend.dtypes import dtype_of
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.args import FLOATING

__all__ = ["pack_int4", "quantize_int4", "quantize_int8"]

Array = np.ndarray[Any, Any]


def quantize_int8(weight: Array) -> tuple[Array, Array]:
    """The nearest int8 weight to ``weight`` (out, in), and its fp32 scale per row (out,).

    Symmetric: ``scale = max(abs(row)) / 127``, and ``weight`` is near ``int8 * scale[:, None]``, within
    half a scale. A row of zeros has scale 0. Raises :class:`InvalidArgumentError` for what is not a
    matrix of finite fp32, fp16 or bf16.
    """
    wide = _finite_matrix(weight)
    scale = np.abs(wide).max(axis=1) / np.float32(127)
    return _codes(wide, scale[:, None], 127), scale


def quantize_int4(weight: Array, group_size: int) -> tuple[Array, Array]:
    """The nearest int4 weight to ``weight`` (out, in): packed (out, in/2), and scale (out, in/group_size).

    Symmetric around the zero point 8 that operations assume, with codes from 1 to 15:
    ``scale = max(abs(group)) / 7``. Raises :class:`InvalidArgumentError` for what is not a matrix of
    finite fp32, fp16 or bf16, and for a ``group_size`` that is odd or does not divide its rows.
    """
    wide = _finite_matrix(weight)
    check_int("group_size", group_size, low=2)
    if group_size % 2 or wide.shape[1] % group_size:
        raise InvalidArgumentError(
            f"group_size is {group_size}: it must be even and divide the {wide.shape[1]} inputs."
        )
    groups = wide.reshape(len(wide), -1, group_size)
    scale = np.abs(groups).max(axis=2) / np.float32(7)
    codes = _codes(groups, scale[..., None], 7) + np.int8(8)
    return pack_int4(codes.reshape(wide.shape)), scale


def pack_int4(codes: Array) -> Array:
    """Codes from 0 to 15 (..., n) as int8 (..., n/2): two for each byte, the even one in the low half.

    Raises :class:`InvalidArgumentError` for numbers that are no such codes, and for an odd ``n``.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu" or codes.ndim < 1 or codes.shape[-1] % 2:
        raise InvalidArgumentError(
            f"Codes must be whole numbers in pairs along the last axis, not {codes.dtype}"
            f"{codes.shape}."
        )
    if codes.size and (codes.min() < 0 or codes.max() > 15):
        raise InvalidArgumentError(
            f"Codes lie within 0 and 15, these within {codes.min()} and {codes.max()}.",
            hint="Add the zero point 8 to signed int4.",
        )
    raw = codes.astype(np.uint8)
    return (raw[..., ::2] | raw[..., 1::2] << 4).view(np.int8)


def _finite_matrix(weight: Array) -> Array:
    given: Array = np.asarray(weight)
    if dtype_of(given) not in FLOATING or given.ndim != 2 or not given.size:
        raise InvalidArgumentError(
            f"A weight must be a matrix of fp32, fp16 or bf16, not {given.dtype}{given.shape}."
        )
    wide: Array = given.astype(np.float32)
    if not np.isfinite(wide).all():
        bad = np.argwhere(~np.isfinite(wide))[0]
        raise InvalidArgumentError(
            f"A weight must be finite, its element ({bad[0]}, {bad[1]}) is {given[tuple(bad)]}."
        )
    return wide


def _codes(wide: Array, scale: Array, limit: int) -> Array:
    ratios = wide / np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(ratios), -limit, limit).astype(np.int8)
