"""Faults that show when a decoder runs: what is kept from step to step, and from block to block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sagellm_backend.conformance.zoo.kernels_calls import OwnCalls
from sagellm_backend.conformance.zoo.member import add_member, kernel_fault, member
from sagellm_backend.conformance.zoo.parts import with_move
from sagellm_backend.kv.copy import Ids
from sagellm_backend.ops.cases import Array
from sagellm_backend.ops.rope import rope

_TOKENS = "model.tokens_are_those_of_the_reference"
_SHARED = "model.a_shared_prefix_is_copied_before_appending"
_CHECKPOINT = "model.a_checkpoint_speaks_as_the_reference"
_SWAPPED = "model.a_preempted_sequence_goes_on_after_swapping"


@member("model", "Attention keeps the lengths of the step before", kills=(_TOKENS,))
class StepsKeepMetadata(OwnCalls):
    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        if name != "attention":
            return kernel
        seen = self.__dict__.setdefault("seen", {})

        def call(q: Any, k: Any, v: Any, metadata: Any, **options: Any) -> Any:
            first = seen.setdefault((metadata.mode, metadata.num_query_tokens), metadata)
            return kernel(q, k, v, first, **options)

        return call


@member(
    "attention",
    "Keys and values are kept with the metadata",
    kills=("attention.metadata_serves_every_layer",),
)
class MetadataKeepsKeys(OwnCalls):
    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        if name != "attention":
            return kernel

        def call(q: Any, k: Any, v: Any, metadata: Any, **options: Any) -> Any:
            k, v = metadata.native.setdefault("kept", (k, v))
            return kernel(q, k, v, metadata, **options)

        return call


@kernel_fault("rope", "Positions begin anew in every step", kills=(_TOKENS,), profile="model")
def positions_begin_anew(
    q: Array, k: Array, positions: Array, cos_sin: Array, *, style: str = "neox"
) -> tuple[Array, Array]:
    return rope(q, k, np.arange(len(positions)), cos_sin, style=style)


def _misses_last_layer(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    write[:-1, :, targets] = read[:-1, :, sources]


def _misses_first_block(read: Array, write: Array, sources: Ids, targets: Ids) -> None:
    if len(sources) > 1:
        sources, targets = sources[1:], targets[1:]
    write[:, :, targets] = read[:, :, sources]


add_member(
    "copy-misses-last-layer",
    "model",
    "A copy leaves the last layer behind",
    with_move(_misses_last_layer),
    kills=(_SHARED, _SWAPPED),
)
add_member(
    "copy-misses-first-of-several",
    "model",
    "A copy of several blocks leaves the first behind",
    with_move(_misses_first_block),
    kills=(_SWAPPED,),
)


def _scaled_by_width(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Attention with the scale of another head size."""

    def attention(*args: Any, scale: float, **options: Any) -> Any:
        return reference(*args, scale=scale * 0.97, **options)

    return attention


@member(
    "model",
    "Errors of every layer add up: attention's scale is 3 % too small",
    kills=(_CHECKPOINT,),
)
class ErrorsAddUp(OwnCalls):
    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        return _scaled_by_width(kernel) if name == "attention" else kernel


@member("model", "The last ids of a large vocabulary are never chosen", kills=(_CHECKPOINT,))
class VocabularyIsCut(OwnCalls):
    """Its greedy sampling reads 4,096 logits of a row, as many as fit into its shared memory."""

    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        if name != "greedy_sample":
            return kernel

        def call(logits: Any) -> Any:
            rows = self.to_numpy(logits)
            return kernel(self.from_numpy(np.ascontiguousarray(rows[..., :4096])))

        return call
