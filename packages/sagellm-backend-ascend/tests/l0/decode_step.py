"""A decode step of two layers, captured and replayed, beside the same without a graph."""

from __future__ import annotations

import numpy as np

BLOCKS, HEADS, SIZE = 6, 2, 128


class Decode:
    """Two layers of attention of two sequences, whose lengths change."""

    def __init__(self, backend, dtype="fp16", **options):
        self.backend, self.options = backend, options
        rng = np.random.default_rng(7)
        shapes = [(BLOCKS, 128, HEADS, SIZE)] * 4
        self.caches = [self._array(rng.standard_normal(shape), dtype) for shape in shapes]
        self.kernel = backend.get_kernel("attention", dtype=dtype)
        self.rng, self.dtype = rng, dtype

    def _array(self, values, dtype):
        return self.backend.from_numpy(values.astype({"fp32": "f4", "fp16": "f2"}[dtype]))

    def __call__(self, q, metadata):
        for layer in range(2):
            k, v = self.caches[2 * layer : 2 * layer + 2]
            q = self.kernel(q, k, v, metadata, scale=SIZE**-0.5, **self.options)
        return q

    def inputs(self, lengths, table=((0, 1, 2), (3, 4, 5))):
        q = self._array(self.rng.standard_normal((2, 2 * HEADS, SIZE)), self.dtype)
        metadata = self.backend.attention_metadata([1, 1], list(lengths), list(table), 128)
        return {"q": q, "metadata": metadata}

    def check(self, graph, inputs):
        wanted = self(**inputs)
        got = graph.replay()
        self.backend.synchronize()
        to_numpy = self.backend.to_numpy
        assert to_numpy(got).tobytes() == to_numpy(wanted).tobytes()


LENGTHS = [(1, 300), (300, 7), (128, 129), (384, 384), (5, 5)]


def replay_all(step):
    """A capture, and a replay of it after each update; fails where one differs."""
    graph = step.backend.capture(step, step.inputs((384, 384)))
    step.check(graph, step.inputs((384, 384)) | graph._inputs)
    for lengths in LENGTHS:
        inputs = step.inputs(lengths, table=((5, 4, 3), (2, 1, 0)))
        graph.update(inputs)
        step.check(graph, inputs)
        step.check(graph, inputs)
