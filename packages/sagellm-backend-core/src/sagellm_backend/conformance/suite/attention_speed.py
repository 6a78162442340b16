"""Speed of paged decode: keys and values read, against a copy within the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.paged import Paged
from sagellm_backend.conformance.speed import GIGA, Array, Work, report, sized
from sagellm_backend.conformance.workloads import served, shuffled, streaming
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError

_BATCH, _KV_HEADS, _GROUP, _WIDTH = 8, 2, 4, 64


class _Decode(Work):
    """Queries that jump from key to key: each finds one key, whose value is the next query.

    Keys are random signs, no two alike: the score of the right one is so much higher that all other
    weights vanish. A run is right only if it has read every key and found the one value.
    """

    def __init__(self, exam: Exam, dtype: DType, nbytes: int) -> None:
        super().__init__(exam)
        token_bytes = 2 * _KV_HEADS * dtype.nbytes(_WIDTH)
        length = nbytes // (_BATCH * token_bytes)
        self.amount = float(_BATCH * length * token_bytes)
        self._next = exam.rng.permutation(length)
        signs = exam.rng.choice(np.array([-1, 1], np.int8), (_BATCH, length, _KV_HEADS, _WIDTH))
        self._keys = signs.astype(dtype.numpy)
        packed = [
            each.reshape(-1, _KV_HEADS, _WIDTH) for each in (self._keys, self._keys[:, self._next])
        ]
        kv = exam.capability.kv
        size = kv.block_sizes[0] if kv.block_sizes else min(16, kv.max_block_size)
        made = Paged.place(exam, [length] * _BATCH, packed, size)
        self._start = exam.rng.integers(0, length, (_BATCH, _KV_HEADS, _GROUP))
        provider = exam.provider
        self._metadata = provider.attention_metadata(
            [1] * _BATCH, [length] * _BATCH, made.table, size
        )
        self._kernel = provider.get_kernel(
            "attention",
            dtype=dtype,
            scale=2.0,
            mode=self._metadata.mode,
            head_dim=_WIDTH,
            num_heads=_KV_HEADS * _GROUP,
            num_kv_heads=_KV_HEADS,
            block_size=size,
        )
        self._query, self._k, self._v = map(
            provider.from_numpy, (self._keys_at(self._start), made.k, made.v)
        )

    def begin(self) -> Any:
        return self._query

    def step(self, state: Any, index: int) -> Any:
        return self._kernel(state, self._k, self._v, self._metadata, scale=2.0)

    def look(self, state: Any) -> Array:
        return self.provider.to_numpy(state)

    def check(self, part: Array, runs: int) -> None:
        wanted = self._keys_at(shuffled(self._next, runs)[self._start])
        off = ~(np.abs(part.astype(np.float32) - wanted.astype(np.float32)) < 0.05)
        self.exam.check(
            not off.any(),
            f"After {runs} steps {int(off.sum()):,} of {off.size:,} elements are wrong.",
        )

    def _keys_at(self, places: Array) -> Array:
        """The keys at places of shape (batch, kv heads, group), as queries."""
        batch, heads, _ = np.indices(places.shape)
        found: Array = self._keys[batch, places, heads]
        return found.reshape(_BATCH, _KV_HEADS * _GROUP, _WIDTH)


@case("attention", depth="standard", params={"dtype": served("attention")})
def speed_of_paged_decode(exam: Exam) -> None:
    """GB/s of keys and values read by decoding 8 sequences, against a copy in the device.

    Kills a kernel that keeps the keys of one call for the
    next, and a device that does not do all that it is given.
    """
    try:
        work = sized(exam, lambda nbytes: _Decode(exam, exam["dtype"], nbytes))
    except CapabilityError:
        exam.measure("refused", 1)
        return
    report(exam, "gb_per_s", GIGA, [work, *streaming(exam)])
