"""Sampling: greedy_sample, sample. Random numbers belong to the caller."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sagellm_backend.capability import KernelKind
from sagellm_backend.dtypes import DType
from sagellm_backend.ops.args import Accuracy, Arg
from sagellm_backend.ops.cases import Array, Case, f64, normal
from sagellm_backend.ops.table import Arguments, declare

TOLERANCE = 1e-5
"""How far outside of an id's interval of probability a draw may lie, for fp32 sums."""


def _greedy_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    yield Case("one", logits=normal(rng, dtype, 1, 1))
    yield Case("row", logits=normal(rng, dtype, 1, 1000))
    yield Case("odd", logits=normal(rng, dtype, 7, 333, scale=5000.0, limit=10000))
    yield Case("ties", logits=rng.integers(-3, 4, (16, 65)).astype(dtype.numpy))
    yield Case("equal", logits=np.zeros((2, 50), dtype.numpy))
    masked = np.full((3, 40), -np.inf, dtype.numpy)
    masked[[0, 1, 2], [0, 17, 39]] = -10000
    yield Case("masked", logits=masked)
    yield Case("empty", logits=np.zeros((0, 9), dtype.numpy))


def _inspect_logits(arguments: Arguments) -> str | None:
    best = f64(arguments["logits"]).max(axis=-1, initial=-np.inf)
    bad = np.flatnonzero(~np.isfinite(best))
    return f"row {bad[0]} of logits holds NaN or +inf, or only -inf" if bad.size else None


@declare(
    args={"logits": Arg("b v")},
    returns=(Arg("b", "int64"),),
    accuracy=Accuracy.EXACT,
    kind=KernelKind.SOFTMAX,
    inputs=_greedy_cases,
    inspect_data=_inspect_logits,
)
def greedy_sample(logits: Array) -> Array:
    """The int64 id of each row's highest logit; among equals the lowest id.

    ``-inf`` bans an id. A row with NaN, or without a finite logit, is undefined.
    """
    ids: Array = np.argmax(f64(logits), axis=-1)
    return ids


def _sample_cases(rng: np.random.Generator, dtype: DType) -> Iterator[Case]:
    for label, rows, vocabulary, temperature, top_k, top_p in (
        ("one", 1, 1, 1.0, 0, 1.0),
        ("plain", 16, 101, 1.0, 0, 1.0),
        ("greedy", 4, 101, 0.0, 0, 1.0),
        ("top-k", 16, 101, 0.7, 5, 1.0),
        ("top-k-one", 4, 101, 1.3, 1, 1.0),
        ("top-k-beyond", 4, 11, 1.0, 500, 1.0),
        ("top-p", 16, 101, 1.0, 0, 0.8),
        ("top-p-tiny", 4, 101, 1.0, 0, 1e-6),
        ("both", 16, 1000, 0.9, 40, 0.9),
        ("hot", 8, 33, 50.0, 0, 0.95),
        ("empty", 0, 9, 1.0, 0, 1.0),
    ):
        logits = normal(rng, dtype, rows, vocabulary, scale=2.0)
        yield _sample_case(rng, label, logits, temperature, top_k, top_p)
    large = normal(rng, dtype, 8, 64, scale=5000.0, limit=10000)
    yield _sample_case(rng, "large", large, 1.0, 0, 1.0)
    ties = rng.integers(0, 3, (32, 24)).astype(dtype.numpy)
    yield _sample_case(rng, "ties", ties, 1.0, 7, 1.0)
    mixed = _sample_case(rng, "mixed", normal(rng, dtype, 4, 50, scale=2.0), 1.0, 0, 1.0)
    mixed["temperature"] = np.array([0.0, 0.5, 1.0, 2.0], np.float32)
    mixed["top_k"] = np.array([0, 3, 0, 50], np.int32)
    mixed["top_p"] = np.array([1.0, 1.0, 0.7, 0.3], np.float32)
    mixed["uniform"] = np.array([0.9, 0.0, 0.999, 0.5], np.float32)
    yield mixed


def _sample_case(
    rng: np.random.Generator,
    label: str,
    logits: Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> Case:
    rows = len(logits)
    return Case(
        label,
        logits=logits,
        uniform=rng.random(rows, np.float32),
        temperature=np.full(rows, temperature, np.float32),
        top_k=np.full(rows, top_k, np.int64),
        top_p=np.full(rows, top_p, np.float32),
    )


def _inspect_sample(arguments: Arguments) -> str | None:
    for name, low, high, words in (
        ("uniform", 0.0, np.nextafter(1.0, 0.0), "0 up to but not 1"),
        ("temperature", 0.0, np.finfo(np.float32).max, "0 and above"),
        ("top_k", 0, np.iinfo(np.int64).max, "0 (off) and above"),
        ("top_p", np.finfo(np.float32).tiny, 1.0, "above 0 up to 1"),
    ):
        values = f64(arguments[name])
        bad = np.flatnonzero(~((values >= low) & (values <= high)))
        if bad.size:
            return f"{name}[{bad[0]}] is {values[bad[0]]:g}, wanted {words}"
    return _inspect_logits(arguments)


def _kept(logits: Array, temperature: float, top_k: int, top_p: float) -> tuple[Array, Array]:
    """The ids that may be drawn, by descending probability, and their cumulated shares."""
    wide = logits.astype(np.float32)
    if temperature == 0:
        return np.array([wide.argmax()]), np.ones(1)
    wide = wide / np.float32(temperature)
    order = np.argsort(-wide, kind="stable")[: top_k or None]
    ordered = f64(wide[order])
    powers = np.exp(ordered - ordered[0])
    shares = np.cumsum(powers) / powers.sum()
    if top_p < 1:
        count = min(int(np.searchsorted(shares, top_p)) + 1, len(shares))
        order, shares = order[:count], shares[:count] / shares[count - 1]
    return order, shares


def draw_errors(got: Array, **arguments: Array) -> Array:
    """How far each draw lies outside of the interval of its id, in units of :data:`TOLERANCE`.

    An id that may not be drawn at all is infinitely far.
    """
    errors = np.full(len(got), np.inf)
    settings = (arguments[name] for name in ("logits", "temperature", "top_k", "top_p", "uniform"))
    for row, (logits, temperature, top_k, top_p, uniform) in enumerate(zip(*settings, strict=True)):
        order, shares = _kept(logits, float(temperature), int(top_k), float(top_p))
        found = np.flatnonzero(order == got[row])
        if found.size:
            place = int(found[0])
            low = shares[place - 1] if place else 0.0
            high = shares[place] if place + 1 < len(shares) else 1.0
            errors[row] = max(low - float(uniform), float(uniform) - high, 0.0) / TOLERANCE
    return errors


@declare(
    args={
        "logits": Arg("b v"),
        "uniform": Arg("b", "fp32"),
        "temperature": Arg("b", "fp32"),
        "top_k": Arg("b", "index"),
        "top_p": Arg("b", "fp32"),
    },
    returns=(Arg("b", "int64"),),
    accuracy=Accuracy.STATISTICAL,
    kind=KernelKind.SOFTMAX,
    inputs=_sample_cases,
    inspect_data=_inspect_sample,
    draw_errors=draw_errors,
    bound=1.0,
)
def sample(logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array) -> Array:
    """One int64 id per row, drawn by the caller's ``uniform`` number in [0, 1).

    Temperature 0 is :func:`greedy_sample`. Otherwise the logits are divided by it in fp32. ``top_k``
    (0: off) keeps that many of the highest, then ``top_p`` (1: off) the smallest set of those left,
    by descending probability, whose probability reaches it, and at least one. Equal logits rank by
    lower id everywhere. The draw inverts the cumulated distribution in that order: the first id
    whose renormalised, cumulated probability exceeds ``uniform``, or the last one kept.

    Out-of-range settings, NaN, and rows without a finite logit are undefined.
    """
    ids = np.zeros(len(logits), np.int64)
    for row, values in enumerate(logits):
        order, shares = _kept(values, float(temperature[row]), int(top_k[row]), float(top_p[row]))
        place = int(np.searchsorted(shares, float(uniform[row]), side="right"))
        ids[row] = order[min(place, len(order) - 1)]
    return ids
