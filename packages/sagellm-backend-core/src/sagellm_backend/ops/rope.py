"""Rotary position embedding: rope, and the table of angles that it reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.checks import check_int
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, f64, normal
from sagellm_backend.ops.shapes import Bindings
from sagellm_backend.ops.statics import Static, choice, positive_int, positive_real
from sagellm_backend.ops.table import Arguments, declare


def rope_cache(max_positions: int, rotary_dim: int, base: float = 10000.0) -> Array:
    """The (max_positions, rotary_dim) fp32 table that :func:`rope` reads.

    Row ``p`` holds ``cos(p * base**(-2i / rotary_dim))`` for ``i`` below ``rotary_dim / 2``, and
    then the sines, computed in float64. Raises :class:`InvalidArgumentError`.
    """
    check_int("max_positions", max_positions)
    if check_int("rotary_dim", rotary_dim) % 2:
        raise InvalidArgumentError(f"rotary_dim is {rotary_dim}; it must be even.")
    wanted = positive_real(base)
    if wanted:
        raise InvalidArgumentError(f"base is {base!r}, wanted {wanted}.")
    frequencies = float(base) ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    angles = np.outer(np.arange(max_positions), frequencies)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _rope_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for style in ("neox", "gptj"):
        for label, tokens, heads, kv_heads, size, rotary in (
            ("one", 1, 1, 1, 2, 2),
            ("gqa", 9, 8, 2, 64, 64),
            ("partial", 5, 3, 3, 40, 16),
            ("decode", 1, 4, 1, 128, 128),
            ("empty", 0, 2, 2, 8, 8),
        ):
            yield Case(
                f"{label}-{style}",
                q=normal(rng, dtype, tokens, heads, size),
                k=normal(rng, dtype, tokens, kv_heads, size),
                positions=rng.integers(0, 4096, tokens),
                cos_sin=rope_cache(4096, rotary),
                style=style,
            )
    yield Case(
        "int32",
        q=normal(rng, dtype, 3, 2, 8),
        k=normal(rng, dtype, 3, 2, 8),
        positions=np.array([0, 63, 0], np.int32),
        cos_sin=rope_cache(64, 8),
        style="neox",
    )


def _relate(_arguments: Arguments, bindings: Bindings) -> str | None:
    rotary, size = bindings["r"], bindings["d"]
    if rotary % 2 or rotary > size:
        return f"cos_sin rotates {rotary} of {size} dimensions; wanted an even number up to {size}"
    return None


def _inspect(arguments: Arguments) -> str | None:
    positions, rows = arguments["positions"], len(arguments["cos_sin"])
    bad = positions[(positions < 0) | (positions >= rows)]
    return f"positions holds {bad[0]}, cos_sin has positions 0 to {rows - 1}" if bad.size else None


def _rotate(x: Array, cos: Array, sin: Array, style: str, sign: int = 1) -> Array:
    """``sign`` -1 rotates; +1 with absolute values gives the magnitude of the terms."""
    rotary = 2 * cos.shape[-1]
    result: Array = x.copy()
    if style == "neox":
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    else:
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    a, b = x[..., first], x[..., second]
    result[..., first] = a * cos + sign * b * sin
    result[..., second] = b * cos + a * sin
    return result


def _angles(positions: Array, cos_sin: Array) -> tuple[Array, Array]:
    cos, sin = np.split(f64(cos_sin)[positions][:, None, :], 2, axis=-1)
    return cos, sin


def _rope_magnitude(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, ...]:
    cos, sin = _angles(positions, np.abs(cos_sin))
    return tuple(_rotate(np.abs(f64(x)), cos, sin, style) for x in (q, k))


@declare(
    args={
        "q": Arg("t hq d"),
        "k": Arg("t hk d"),
        "positions": Arg("t", "index"),
        "cos_sin": Arg("p r", "fp32"),
    },
    returns=(Arg("t hq d"), Arg("t hk d")),
    accuracy=Accuracy.ACCUMULATED,
    kind=KernelKind.FUSION,
    inputs=_rope_cases,
    statics={
        "style": Static(choice("neox", "gptj")),
        "head_dim": Static(positive_int, "d"),
        "rotary_dim": Static(positive_int, "r"),
    },
    relate=_relate,
    inspect_data=_inspect,
    magnitude=_rope_magnitude,
)
def rope(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    """Queries and keys, rotated by the angles of their positions.

    The first ``r`` dimensions of each head are rotated and the rest passes through. A row of
    ``cos_sin`` holds ``r / 2`` cosines and then the sines (:func:`rope_cache`), which are not
    rounded to the dtype. ``neox`` pairs dimension ``i`` with ``i + r / 2``, ``gptj`` pairs ``2 * i``
    with ``2 * i + 1``. The arguments are not changed. Positions outside of the table are undefined.
    Su et al., "RoFormer", 2021.
    """
    cos, sin = _angles(positions, cos_sin)
    return _rotate(f64(q), cos, sin, style, -1), _rotate(f64(k), cos, sin, style, -1)
