"""Attention: scores that a softmax must survive, far beyond the cap or hidden for many keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.calls import judged
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.paged import ATTENTION, Paged, dtypes

_PARAMS: dict[str, Any] = {
    "dtype": dtypes,
    "keys": ("ragged", "paged"),
    "step": ("decode", "prefill"),
}
_HEADS, _WIDTH = 4, 32


@case("attention", params=_PARAMS)
def scores_far_beyond_the_cap(exam: Exam) -> None:
    """A score far beyond the softcap, to either side, counts as the cap itself.

    Scores reach from some times the cap to thousands of it, both above and below. Kills a tanh made
    of powers that overflow.
    """
    query = [1, 1] if exam["step"] == "decode" else [12, 7]
    sizes = 4.0 ** np.arange(1, 1 + _HEADS)
    _compare(exam, query, [70, 33], sizes, softcap=0.5)


@case("attention", params=_PARAMS)
def windows_far_behind_the_first_key(exam: Exam) -> None:
    """A window sees the same of a long sequence as of a short one, and the first keys not at all.

    Kills a running maximum that is still -inf when a whole tile of keys lies before the window.
    """
    query = [1, 1] if exam["step"] == "decode" else [40, 3]
    _compare(exam, query, [700, 130], np.ones(_HEADS), window=9)


def _compare(
    exam: Exam, query: Sequence[int], kv: Sequence[int], sizes: Any, **options: Any
) -> None:
    """Judge new tokens whose queries are normal and, head by head, of these sizes."""
    dtype, size = exam["dtype"].numpy, 16
    k, v = (exam.rng.standard_normal((sum(kv), 2, _WIDTH)).astype(dtype) for _ in range(2))
    q = exam.rng.standard_normal((sum(query), _HEADS, _WIDTH)) * sizes[:, None]
    if exam["keys"] == "paged":
        made = Paged.place(exam, kv, [k, v], size)
        k, v, metadata = made.k, made.v, AttentionMetadata.build(query, kv, made.table, size)
    else:
        metadata = AttentionMetadata.build(query, kv)
    arguments = {"q": q.astype(dtype), "k": k, "v": v, "metadata": metadata}
    bound = ATTENTION.bind((), {**arguments, "scale": _WIDTH**-0.5, **options})
    judged(exam, ATTENTION, bound, exam["dtype"])
