"""Rows of whole models: ``examples/generate.py``'s loop over SmolLM2-135M, beside other engines."""

from __future__ import annotations

import math
import sys
import time
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

from sagellm_backend.bench.row import (
    LIMIT,
    TOKENS_PER_S,
    Match,
    Row,
    Side,
    Target,
    add,
)
from sagellm_backend.bench.session import Session
from sagellm_backend.dtypes import DType, dtype_of
from sagellm_backend.errors import CapabilityError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from fetch_model import default_cache, fetch
from generate import Generator, Sampling
from llama import Llama, operations

PROMPT, NEW = 32, 64
VLLM, TRANSFORMERS, FP32 = "vLLM", "transformers", "ours in fp32"
TEXT = """The machine that reads this text has a processor, some memory and a clock. It was asked to go
on where the text ends, and how fast it does so is what is measured here; what it says is of no weight
at all. Still the words are words, in the order in which people write them, since a model that is fed
with noise may behave as no model does in service. A second paragraph makes the text long enough to be
cut into eight parts of equal length. Each of them begins somewhere in the middle of a sentence, which
does no harm: a model of this size is not easily confused by that, or is confused by everything. The
last part ends here, with a few more words that nobody has to read, so that there are enough of them,
and then some, and some more after these, until the count is reached that the eight prompts ask for."""


@cache
def checkpoint() -> Path:
    """The folder of the checkpoint, fetched once."""
    return fetch(default_cache())


@cache
def prompts() -> list[list[int]]:
    """Eight prompts of the same length, as tokens."""
    import transformers

    transformers.logging.set_verbosity_error()
    ids = transformers.AutoTokenizer.from_pretrained(checkpoint())(2 * TEXT)["input_ids"]
    found = [ids[start : start + PROMPT] for start in range(0, 8 * PROMPT, PROMPT)]
    assert all(len(part) == PROMPT for part in found)
    return found


class Ours:
    """The example's model on a provider, with a pool, ready to generate."""

    def __init__(self, session: Session, dtype: DType, *, int8: bool = False) -> None:
        provider = session.provider
        for name in operations(int8=int8):
            reasons = provider.supports(name, dtype=dtype)
            if reasons:
                what = f"{name} in {dtype.value}"
                raise CapabilityError(what, provider.name, "; ".join(reasons))
        self.model = Llama(provider, checkpoint(), dtype, int8=int8)
        layout = self.model.kv_layout()
        self.pool = provider.kv_pool(layout, layout.blocks_for(8 * (PROMPT + NEW + 16)))
        self.weight_bytes = _weight_bytes(self.model)
        self.tokens: dict[int, list[int]] = {}

    def steps(self, streams: int, new: int) -> list[float]:
        """Seconds of each step of a run: the first takes the prompts in, every other is a token."""
        generator = Generator(self.model, self.pool, Sampling(), stop=())
        times = [time.perf_counter()]
        for sequence, _ in generator.run(prompts()[:streams], new):
            self.tokens[sequence.index] = sequence.generated
            if sequence.index == streams - 1:
                times.append(time.perf_counter())
        return [end - began for began, end in pairwise(times)]


def _weight_bytes(model: Llama) -> int:
    """Bytes that a step reads: every weight once; a row of the embedding is not counted."""
    products = [model.head, *(part for layer in model.layers for part in vars(layer).values())]
    arrays = [model.norm]
    for found in products:
        arrays += found if isinstance(found, tuple) else (found,)
    return sum(
        dtype_of(array).nbytes(math.prod(array.shape)) for array in arrays if array is not None
    )


def _runs(session: Session, streams: int, dtype: DType) -> Match:
    new = 4 if session.quick else NEW
    config = {
        "checkpoint": str(checkpoint()),
        "dtype": dtype.value,
        "prompts": prompts()[:streams],
        "new": new,
    }
    key = dtype.value
    others = [
        session.peer("vllm", VLLM, "vllm_generate.py", config, key),
        session.peer("transformers", TRANSFORMERS, "transformers_generate.py", config, key),
    ]
    ours = Ours(session, dtype)
    side = Side("ours", lambda _: [sum(ours.steps(streams, new))])
    ours.steps(streams, new)
    note = f"{PROMPT} tokens of prompt each, then {new} new ones, prompts included in the time"
    agreed = [_agreed(ours, other) for other in others if isinstance(other, Side)]
    return Match(side, others, streams * new, note="; ".join([note, *agreed]))


def _agreed(ours: Ours, other: Side) -> str:
    """How far the other side generates what ours does."""
    streams = other.facts["tokens"]
    same = sum(tokens == ours.tokens[index] for index, tokens in enumerate(streams))
    return f"{other.name} generates the same in {same} of {len(streams)}"


def _side(session: Session, ours: Ours, name: str = "ours") -> Side:
    new = 4 if session.quick else NEW
    return Side(name, lambda _: ours.steps(1, new)[1:])


def _steps(session: Session, dtype: DType) -> Match:
    ours = Ours(session, dtype)
    bound = session.limits.read(ours.weight_bytes)
    return Match(_side(session, ours), [], 1.0, bound, _weights(ours))


def _int8(session: Session) -> Match:
    ours, plain = Ours(session, DType.FP32, int8=True), Ours(session, DType.FP32)
    bound = session.limits.read(ours.weight_bytes)
    return Match(_side(session, ours), [_side(session, plain, FP32)], 1.0, bound, _weights(ours))


def _weights(ours: Ours) -> str:
    return f"{ours.weight_bytes / 1e6:.0f} MB of weights"


def add_rows() -> None:
    """Declare them."""
    for dtype in (DType.FP32, DType.BF16):
        for streams in (1, 8):
            words = "one stream" if streams == 1 else f"{streams} streams"
            add(
                Row(
                    f"generate-{streams}-{dtype.value}",
                    "whole model",
                    f"examples/generate.py with SmolLM2-135M in {dtype.value}, {words}",
                    TOKENS_PER_S,
                    partial(_runs, streams=streams, dtype=dtype),
                    (Target(VLLM, ratio=1.5),),
                )
            )
    for dtype in (DType.FP32, DType.BF16):
        add(
            Row(
                f"token-{dtype.value}",
                "whole model",
                f"One token after the first, one stream in {dtype.value}: each reads all weights",
                TOKENS_PER_S,
                partial(_steps, dtype=dtype),
                (Target(LIMIT, ratio=0.85),) if dtype is DType.FP32 else (),
            )
        )
    add(
        Row(
            "token-int8",
            "whole model",
            "One token after the first, one stream, int8 weights and fp32 otherwise",
            TOKENS_PER_S,
            _int8,
            (Target(FP32, ratio=2.5),),
        )
    )
