"""A decode step of many layers, called one operation after the other and replayed as a graph.

    python benchmarks/graph.py --backend cuda

Every step has another position, slot and length, which a graph gets by ``update``. Two lines: the
best and the median time of a step, either way; then how many times faster the replay is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sagellm_backend import DType, KVLayout, get_provider
from sagellm_backend.errors import BackendError
from sagellm_backend.ops.rope import rope_cache

HIDDEN, INNER, HEADS, KV_HEADS, DIM, BLOCK = 576, 1536, 9, 3, 64, 128
EPS, SCALE = 1e-5, DIM**-0.5
OPERATIONS = ("linear", "rms_norm", "add_rms_norm", "rope", "kv_write", "attention", "silu_and_mul")
SHAPES = {
    "q": (HEADS * DIM, HIDDEN),
    "k": (KV_HEADS * DIM, HIDDEN),
    "v": (KV_HEADS * DIM, HIDDEN),
    "o": (HIDDEN, HEADS * DIM),
    "gate_up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


class Model:
    """Layers of the sizes of SmolLM2-135M with random weights, over a paged cache."""

    def __init__(self, backend: Any, layers: int, context: int, dtype: DType) -> None:
        self.backend, self.layers, self.dtype = backend, layers, dtype
        self.rng = np.random.default_rng(0)
        self.op = {name: backend.get_kernel(name, dtype=dtype) for name in OPERATIONS}
        self.pool = backend.kv_pool(
            KVLayout(layers, KV_HEADS, DIM, BLOCK, dtype), -(-context // BLOCK)
        )
        self.blocks = self.pool.alloc(self.pool.num_blocks)
        self.cos_sin = backend.from_numpy(rope_cache(context, DIM))
        self.norm = backend.from_numpy(np.ones(HIDDEN, dtype.numpy))
        self.weights = [
            {name: self._random(*shape, scale=shape[1] ** -0.5) for name, shape in SHAPES.items()}
            for _ in range(layers)
        ]
        slots = backend.from_numpy(self._metadata(context, context).slots())
        for layer in range(layers):
            prompt = [self._random(context, KV_HEADS, DIM) for _ in "kv"]
            caches = self.pool.key_cache(layer), self.pool.value_cache(layer)
            self.op["kv_write"](*prompt, *caches, slots)

    def inputs(self, length: int) -> dict[str, Any]:
        """What one step needs with so many tokens in the cache, the new one among them."""
        metadata = self._metadata(1, length)
        return {
            "x": self._random(1, HIDDEN),
            "positions": self.backend.from_numpy(metadata.positions()),
            "slots": self.backend.from_numpy(metadata.slots()),
            "metadata": metadata,
        }

    def step(self, x: Any, positions: Any, slots: Any, metadata: Any) -> Any:
        """The hidden state behind the last layer."""
        op, residual = self.op, x
        x = op["rms_norm"](x, self.norm, EPS)
        for layer, weight in enumerate(self.weights):
            q = op["linear"](x, weight["q"]).reshape(1, HEADS, DIM)
            k, v = (op["linear"](x, weight[name]).reshape(1, KV_HEADS, DIM) for name in "kv")
            q, k = op["rope"](q, k, positions, self.cos_sin)
            caches = self.pool.key_cache(layer), self.pool.value_cache(layer)
            op["kv_write"](k, v, *caches, slots)
            x = op["attention"](q, *caches, metadata, scale=SCALE).reshape(1, HEADS * DIM)
            x = op["linear"](x, weight["o"])
            x, residual = op["add_rms_norm"](x, residual, self.norm, EPS)
            x = op["linear"](op["silu_and_mul"](op["linear"](x, weight["gate_up"])), weight["down"])
            x, residual = op["add_rms_norm"](x, residual, self.norm, EPS)
        return x

    def _metadata(self, new: int, length: int) -> Any:
        return self.backend.attention_metadata([new], [length], [self.blocks.tolist()], BLOCK)

    def _random(self, *shape: int, scale: float = 1.0) -> Any:
        values = scale * self.rng.standard_normal(shape)
        return self.backend.from_numpy(values.astype(self.dtype.numpy))


def times(backend: Any, run: Callable[[], object], seconds: float) -> list[float]:
    """The time of every run, the wait for its work included."""
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        began = time.perf_counter()
        run()
        backend.synchronize()
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way")
    chosen = parser.parse_args()
    backend = get_provider(chosen.backend)
    model = Model(backend, chosen.layers, chosen.context, DType(chosen.dtype))
    steps = [model.inputs(length) for length in (chosen.context - 1, chosen.context)]
    try:
        graph = backend.capture(model.step, steps[0])
    except BackendError as error:
        raise SystemExit(f"There is nothing to replay: {error}") from error
    for inputs in steps:
        wanted = backend.to_numpy(model.step(**inputs)).astype(np.float64)
        graph.update(inputs)
        found = backend.to_numpy(graph.replay()).astype(np.float64)
        if not np.allclose(found, wanted, rtol=0.05, atol=0.05 * np.abs(wanted).max()):
            raise SystemExit("The replay computes something else.")
    turn = iter(range(1 << 62))

    def replay() -> None:
        graph.update(steps[next(turn) % 2])
        graph.replay()

    eager = times(backend, partial(model.step, **steps[1]), chosen.seconds)
    replayed = times(backend, replay, chosen.seconds)
    print(f"{backend.capability().device_name}, {chosen.layers} layers, {chosen.dtype}, batch 1")
    for name, found in (("eager", eager), ("replay", replayed)):
        median = statistics.median(found)
        print(f"{name:<8} best {min(found) * 1e3:.3f} ms, median {median * 1e3:.3f} ms")
    ratios = min(eager) / min(replayed), statistics.median(eager) / statistics.median(replayed)
    print(f"the replay is {ratios[0]:.2f} times as fast, by the medians {ratios[1]:.2f}")
    graph.close()


if __name__ == "__main__":
    main()
