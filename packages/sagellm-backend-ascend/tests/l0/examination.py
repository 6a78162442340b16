"""What the tests of L0 ask of a provider."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from decode_step import Decode, replay_all

from sagellm_backend import KVLayout
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.capability import Feature
from sagellm_backend.conformance.operations import Finding, examine_operations, judge
from sagellm_backend.kv.layout import ORDERS, PACKINGS
from sagellm_backend.ops import operation
from sagellm_backend.ops.attention_cases import _random
from sagellm_backend.ops.cases import Case

CHIPS = {"A2": 222, "A3": 252, "310P": 202, "910": 101, "950": 260, "unknown": 999}
"""One SoC version of each family."""


def operation_findings(backend, names):
    """The cases of the table."""
    return examine_operations(backend, operations=names)


def attention_cases(dtype):
    """Blocks of 128 and heads of 128, which the table's cases do not have."""
    rng = np.random.default_rng(5)
    edges = [1, 127, 128, 129, 300]
    for label, query, kv, heads, block, options in (
        ("decode", [1] * 5, edges, (8, 2, 128), 128, {}),
        ("decode-heads-64", [1] * 3, [128, 7, 256], (4, 4, 64), 128, {}),
        ("decode-window", [1, 1], [200, 5], (4, 2, 128), 128, {"window": 64}),
        ("chunk", [3, 130, 1], [131, 130, 300], (4, 2, 128), 128, {}),
        ("chunk-bidirectional", [3, 9], [131, 9], (2, 2, 128), 128, {"causal": False}),
        ("prompt", [5, 17, 1], [5, 17, 1], (4, 2, 128), None, {}),
        ("prompt-longer-keys", [5, 17], [9, 17], (4, 1, 128), None, {}),
        ("prompt-bidirectional", [5, 17], [5, 17], (2, 2, 128), None, {"causal": False}),
        ("prompt-softcap", [9], [9], (2, 2, 128), None, {"softcap": 4.0}),
        ("decode-sinks", [1, 1], [200, 5], (4, 2, 128), 128, {"sinks": 2.0}),
    ):
        yield _random(rng, dtype, label, query, kv, heads, block, **options)
    k, v = (rng.standard_normal((2, 128, 2, 128)).astype(dtype.numpy) for _ in range(2))
    q = rng.standard_normal((2, 4, 128)).astype(dtype.numpy)
    metadata = AttentionMetadata.build([1, 1], [130, 140], [[0, 1], [0, 1]], 128)
    yield Case("decode-shared", q=q, k=k, v=v, metadata=metadata, scale=0.1)


def attention_findings(backend):
    """The cases above, by the kernel that dispatch chooses with all that is known."""
    target, found = operation("attention"), []
    for dtype in backend.compute_dtypes:
        for case in attention_cases(dtype):
            arguments = target.bind((), case)
            try:
                kernel = backend.get_kernel("attention", **target.statics_of(arguments))
                result = judge(backend, target, kernel, arguments, dtype)
            except Exception as error:  # noqa: BLE001 - it is what was found
                found.append(
                    Finding("attention", dtype.value, case.label, False, detail=str(error))
                )
                continue
            found.append(
                Finding("attention", dtype.value, case.label, result.passed, detail=result.detail)
            )
    return found


def pool_findings(backend):
    """Writes into pools of every order and packing, and decodes from them."""
    for dtype in backend.compute_dtypes:
        for order in ORDERS:
            for packing in PACKINGS:
                layout = KVLayout(1, 2, 128, 128, dtype, order=order, packing=packing)
                with backend.kv_pool(layout, 3) as pool:
                    problem = _write_and_read(backend, pool, dtype)
                label = f"pool-{order}-{packing}"
                yield Finding("kv_write", dtype.value, label, not problem, detail=problem)


def _write_and_read(backend, pool, dtype):
    rng = np.random.default_rng(9)
    slots = np.array([2 * 128 + 5, -1, 0, 127], np.int64)
    new = rng.standard_normal((4, 2, 128)).astype(dtype.numpy)
    wanted = np.zeros((3, 128, 2, 128), dtype.numpy)
    caches = pool.key_cache(0), pool.value_cache(0)
    for cache in caches:
        cache.zero_()
    arrays = (backend.from_numpy(item) for item in (new, -new))
    try:
        backend.get_kernel("kv_write")(*arrays, *caches, backend.from_numpy(slots))
    except Exception as error:  # noqa: BLE001 - it is what was found
        return str(error)
    wanted[slots[slots >= 0] // 128, slots[slots >= 0] % 128] = new[slots >= 0]
    for cache, sign in zip(caches, (1, -1), strict=True):
        if (backend.to_numpy(cache) != sign * wanted).any():
            return "the cache holds something else"
    return ""


def linear_findings(backend):
    """Weights that are used again, and again after each change."""
    rng = np.random.default_rng(3)
    target = operation("linear")
    kernel = backend.get_kernel("linear", dtype="fp16")
    for rows, columns in ((16, 32), (40, 33), (1, 32)):
        x, weight = (rng.standard_normal((n, columns)).astype("f2") for n in (5, rows))
        bias = rng.standard_normal(rows).astype("f2")
        arrays = {name: backend.from_numpy(item) for name, item in (("x", x), ("weight", weight))}
        problems = []
        for turn in range(4):
            if turn == 3:
                arrays["weight"].mul_(2)
                weight = weight * 2
            got = backend.to_numpy(kernel(**arrays, bias=backend.from_numpy(bias)))
            wanted = target.reference(x, weight, bias)
            if np.abs(got - wanted).max() > 1e-2 * np.abs(wanted).max():
                problems.append(f"use {turn} gives something else")
        label = f"reused-{rows}x{columns}"
        yield Finding("linear", "fp16", label, not problems, detail="; ".join(problems))


def graph_findings(backend):
    """Graphs of decodes, where they are offered."""
    if Feature.GRAPH not in backend.capability().features:
        return
    try:
        replay_all(Decode(backend))
        problem = ""
    except Exception as error:  # noqa: BLE001 - it is what was found
        problem = f"{type(error).__name__}: {error}"
    yield Finding("attention", "fp16", "graph", not problem, detail=problem)


def mutant(module, *changes):
    """A module with something wrong in it: ``changes`` are pairs of what is there and its stead."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in source, f"{old!r} is not in {module.__name__}"
        source = source.replace(old, new)
    made = ModuleType("mutant")
    made.__file__ = module.__file__
    sys.modules.setdefault("mutant", made)
    exec(compile(source, module.__file__, "exec"), made.__dict__)
    return made
