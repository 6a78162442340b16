"""Products with weights that together are larger than caches: one row and eight, plain and quantised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

from sagellm_backend.bench.row import GB_PER_S, MICROSECONDS, Match, Row, add
from sagellm_backend.bench.session import Session
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError
from sagellm_backend.quantization import quantize_int4, quantize_int8

_INPUTS, _OUTPUTS = 2048, 4096
_ROTATION = 256 << 20
_GROUP = 128
PLAIN = "F.linear"


def _shape(session: Session) -> tuple[int, int]:
    return (128, 64) if session.quick else (_OUTPUTS, _INPUTS)


def _count(session: Session, nbytes: int) -> int:
    """How many weights are used in turns."""
    return 2 if session.quick else max(_ROTATION // nbytes, 2)


def _kernel(session: Session, name: str, dtype: DType) -> Callable[..., Any]:
    provider = session.provider
    reasons = provider.supports(name, dtype=dtype)
    if reasons:
        raise CapabilityError(f"{name} in {dtype.value}", provider.name, "; ".join(reasons))
    return provider.get_kernel(name, dtype=dtype)


def _plain(session: Session, rows: int, dtype: DType) -> Match:
    linear, provider = _kernel(session, "linear", dtype), session.provider
    outputs, inputs = _shape(session)
    nbytes = dtype.nbytes(outputs * inputs)
    weights = [
        provider.from_numpy(session.normal(outputs, inputs, dtype=dtype))
        for _ in range(_count(session, nbytes))
    ]
    x = provider.from_numpy(session.normal(rows, inputs, dtype=dtype))
    each = cycle(weights)
    return Match(
        session.ours(lambda: linear(x, next(each))),
        [session.beside(PLAIN, "linear", x, weights)],
        nbytes,
        session.limits.read(nbytes, among=nbytes * len(weights)),
        f"{inputs} inputs, {outputs} outputs, {len(weights)} weights in turns",
    )


def _quantised(session: Session, rows: int, name: str, dtype: DType) -> Match:
    linear, provider = _kernel(session, name, dtype), session.provider
    outputs, inputs = _shape(session)
    group = 32 if session.quick else _GROUP
    host = session.normal(outputs, inputs)
    pair = quantize_int4(host, group) if name == "linear_w4a16" else quantize_int8(host)
    nbytes = sum(array.nbytes for array in pair)
    weights = [tuple(map(provider.from_numpy, pair)) for _ in range(_count(session, nbytes))]
    x = provider.from_numpy(session.normal(rows, inputs, dtype=dtype))
    plain = [
        provider.from_numpy(host.astype(dtype.numpy))
        for _ in range(_count(session, dtype.nbytes(host.size)))
    ]
    each = cycle(weights)
    return Match(
        session.ours(lambda: linear(x, *next(each))),
        [session.beside(f"{PLAIN} in {dtype.value}", "linear", x, plain)],
        1.0,
        session.limits.read(nbytes, among=nbytes * len(weights)),
        f"{inputs} inputs, {outputs} outputs, {nbytes / 2**20:.1f} MiB, {len(weights)} in turns",
    )


for _rows in (1, 8):
    _words = "one row" if _rows == 1 else f"{_rows} rows"
    for _dtype in (DType.FP32, DType.BF16, DType.FP16):
        add(
            Row(
                f"linear-{_rows}-{_dtype.value}",
                "linear",
                f"A product of {_words} in {_dtype.value}, as the bytes of the weight that it reads",
                GB_PER_S,
                partial(_plain, rows=_rows, dtype=_dtype),
            )
        )
for _rows in (1, 8):
    _words = "one row" if _rows == 1 else f"{_rows} rows"
    for _name in ("linear_w8a16", "linear_w8a8", "linear_w4a16"):
        for _dtype in (DType.FP32, DType.BF16):
            add(
                Row(
                    f"{_name}-{_rows}-{_dtype.value}",
                    "quantised linear",
                    f"{_name} of {_words} in {_dtype.value}",
                    MICROSECONDS,
                    partial(_quantised, rows=_rows, name=_name, dtype=_dtype),
                )
            )
