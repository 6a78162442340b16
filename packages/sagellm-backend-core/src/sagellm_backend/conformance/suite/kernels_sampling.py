"""Kernels: sampling follows the distribution, and its edges have one right answer each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sagellm_backend.capability import CapabilityDescriptor
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.dtypes import DType

Array = np.ndarray[Any, Any]

_LAST = np.nextafter(np.float32(1), np.float32(0))
"""The highest number that a uniform draw can be."""

_CHI_SQUARE_SIGMA = 4.753
"""Quantile of the normal distribution at one in a million, one-sided."""


class _Setting(NamedTuple):
    """What :func:`sample` is told for one row, and the uniform number."""

    uniform: float
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def _sampled(capability: CapabilityDescriptor) -> tuple[DType, ...]:
    return capability.operations.get("sample", ())


@case("kernels", params={"dtype": _sampled, "filter": ("none", "top-k", "top-p", "both")})
def draws_follow_the_distribution(exam: Exam) -> None:
    """Thousands of draws come as often as the probabilities say, by a chi-square test.

    A right kernel fails in one of a million runs. Kills a forgotten temperature, a filter that
    keeps one too many, probabilities that are not renormalised.
    """
    filtered = exam["filter"]
    top_k = 5 if filtered in {"top-k", "both"} else 0
    top_p = 0.8 if filtered in {"top-p", "both"} else 1.0
    logits = exam.rng.standard_normal(12).astype(exam["dtype"].numpy)
    wanted = _shares(logits, 0.7, top_k, top_p)
    count = 4096
    uniforms = exam.rng.random(count, np.float32)
    settings = [_Setting(float(uniform), 0.7, top_k, top_p) for uniform in uniforms]
    drawn = np.bincount(_sample(exam, np.tile(logits, (count, 1)), settings), minlength=12)
    banned = np.flatnonzero((wanted == 0) & (drawn > 0))
    exam.check(not banned.size, f"ids {banned.tolist()} were drawn and are filtered out.")
    kept = wanted > 0
    expected = count * wanted[kept]
    found = float(((drawn[kept] - expected) ** 2 / expected).sum())
    limit = _chi_square_limit(int(kept.sum()) - 1)
    exam.measure("chi_square", found)
    exam.measure("bound", limit)
    exam.check(
        found <= limit,
        f"chi-square {found:.1f}, allowed {limit:.1f}: drawn {drawn.tolist()}, "
        f"expected {(count * wanted).round(1).tolist()}.",
    )


def _shares(logits: Array, temperature: float, top_k: int, top_p: float) -> Array:
    """Each id's probability, by the definition."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    rank = np.empty(len(scaled), int)
    rank[np.argsort(-scaled, kind="stable")] = np.arange(len(scaled))
    if top_k:
        powers[rank >= top_k] = 0
    powers /= powers.sum()
    before = np.array([powers[rank < own].sum() for own in rank])
    powers[before >= top_p] = 0
    shares: Array = powers / powers.sum()
    return shares


def _chi_square_limit(freedom: int) -> float:
    """Wilson and Hilferty's approximation (1931) of the quantile."""
    spread = 2 / (9 * max(freedom, 1))
    return float(max(freedom, 1) * (1 - spread + _CHI_SQUARE_SIGMA * spread**0.5) ** 3)


@case("kernels", params={"dtype": _sampled})
def equal_logits_rank_by_id(exam: Exam) -> None:
    """Among equal logits the lower id comes first, in the draw and in what the filters keep.

    Kills a sort that is not stable, and a draw that runs from the other end.
    """
    logits = np.zeros((8, 8), exam["dtype"].numpy)
    steps = [(step + 0.5) / 8 for step in range(8)]
    plain = _sample(exam, logits, [_Setting(step) for step in steps])
    exam.check(plain.tolist() == list(range(8)), f"eight equal ids were drawn as {plain.tolist()}.")
    for words, setting in (("top_k", {"top_k": 4}), ("top_p", {"top_p": 0.45})):
        got = _sample(exam, logits, [_Setting(step, **setting) for step in steps])
        wanted = [0, 0, 1, 1, 2, 2, 3, 3]
        exam.check(got.tolist() == wanted, f"{words}: {got.tolist()} came, wanted {wanted}.")


@case("kernels", params={"dtype": _sampled})
def edges_of_sampling(exam: Exam) -> None:
    """The edges of every setting give the one id that they leave.

    Kills an index past the end for a uniform near 1, a filter that keeps nothing, a division by a
    temperature of 0.
    """
    logits = np.array([0.5, 3.0, -np.inf, 1.0, 3.0, -2.0]).astype(exam["dtype"].numpy)
    edges = (
        ("the lowest uniform", _Setting(0.0), 1),
        ("the highest uniform", _Setting(float(_LAST)), 5),
        ("temperature 0", _Setting(0.99, temperature=0.0), 1),
        ("temperature 0 and filters", _Setting(0.99, 0.0, 3, 0.5), 1),
        ("a low temperature", _Setting(0.25, temperature=1e-4), 1),
        ("a low temperature, beyond the half", _Setting(0.75, temperature=1e-4), 4),
        ("top_k 1", _Setting(float(_LAST), top_k=1), 1),
        ("top_k 2", _Setting(float(_LAST), top_k=2), 4),
        ("top_k of all", _Setting(float(_LAST), top_k=6), 5),
        ("top_k beyond all", _Setting(0.0, top_k=10**9), 1),
        ("the smallest top_p", _Setting(float(_LAST), top_p=1e-6), 1),
        ("top_p just below 1", _Setting(0.0, top_p=float(_LAST)), 1),
        ("both filters", _Setting(float(_LAST), 1.0, 3, 0.6), 4),
    )
    rows = np.tile(logits, (len(edges), 1))
    got = _sample(exam, rows, [setting for _, setting, _ in edges])
    for (words, setting, wanted), found in zip(edges, got.tolist(), strict=True):
        exam.check(found == wanted, f"{words}, {setting}: id {found} came, wanted {wanted}.")


@case("kernels", params={"dtype": _sampled})
def banned_ids_are_never_drawn(exam: Exam) -> None:
    """An id of logit -inf is not drawn, whatever the uniform number and the temperature.

    Kills a kernel that clips -inf to a number, and a cumulated sum whose end is short of 1.
    """
    count = 256
    logits = exam.rng.standard_normal((count, 33)).astype(exam["dtype"].numpy)
    banned = exam.rng.random((count, 33)) < 0.7
    banned[np.arange(count), exam.rng.integers(0, 33, count)] = False
    logits[banned] = -np.inf
    uniforms = np.where(np.arange(count) % 2, _LAST, exam.rng.random(count, np.float32))
    heat = exam.rng.choice([0.3, 1.0, 100.0], count)
    settings = [_Setting(float(u), float(t)) for u, t in zip(uniforms, heat, strict=True)]
    got = _sample(exam, logits, settings)
    wrong = np.flatnonzero(banned[np.arange(count), got])
    exam.check(not wrong.size, f"{wrong.size} of {count} draws are banned ids.")


def _sample(exam: Exam, logits: Array, settings: list[_Setting]) -> Array:
    uniform, temperature, top_k, top_p = (
        np.array(column) for column in zip(*settings, strict=True)
    )
    arrays = {
        "logits": logits,
        "uniform": uniform.astype(np.float32),
        "temperature": temperature.astype(np.float32),
        "top_k": top_k.astype(np.int32),
        "top_p": top_p.astype(np.float32),
    }
    provider = exam.provider
    kernel = provider.get_kernel("sample", dtype=exam["dtype"])
    ids = provider.to_numpy(kernel(**{n: provider.from_numpy(a) for n, a in arrays.items()}))
    exam.check(
        ids.shape == (len(logits),) and ids.dtype == np.int64,
        f"sample gave {ids.dtype}{ids.shape}, wanted int64({len(logits)},).",
    )
    inside = (ids >= 0) & (ids < logits.shape[1])
    exam.check(bool(inside.all()), f"an id lies outside of the vocabulary: {ids[~inside]}.")
    result: Array = ids
    return result
