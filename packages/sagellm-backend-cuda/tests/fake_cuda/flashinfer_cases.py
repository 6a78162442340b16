"""Cases that flashinfer's kernels take, and what a provider makes of them."""

from __future__ import annotations

import numpy as np

from sagellm_backend import DType
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.conformance.operations import examine_operations, judge
from sagellm_backend.errors import BackendError
from sagellm_backend.ops import operation
from sagellm_backend.ops.attention_cases import _random

OFFERED = ("rms_norm", "silu_and_mul", "rope", "attention")
HALF = (DType.FP16, DType.BF16)


def attention_cases(dtype):
    rng = np.random.default_rng(3)
    for label, query, kv, heads, size, options in (
        ("decode", [1] * 5, [1, 15, 16, 17, 40], (8, 2, 64), 16, {}),
        ("decode-one-head-each", [1] * 3, [9, 7, 33], (2, 2, 128), 8, {}),
        ("decode-group-5", [1, 1], [20, 5], (5, 1, 64), 16, {}),
        ("decode-window", [1, 1], [40, 5], (4, 2, 64), 16, {"window": 7}),
        ("decode-softcap", [1, 1], [40, 5], (4, 4, 64), 16, {"softcap": 3.0}),
        ("decode-sinks", [1, 1], [40, 5], (4, 2, 64), 16, {"sinks": 2.0}),
        ("chunk", [3, 13, 1], [21, 13, 40], (4, 2, 64), 16, {}),
        ("chunk-bidirectional", [3, 9], [20, 9], (2, 2, 128), 16, {"causal": False}),
        ("chunk-window", [3, 9], [20, 9], (2, 1, 64), 4, {"window": 5}),
        ("chunk-softcap", [3], [20], (2, 1, 64), 4, {"softcap": 2.0}),
        ("prompt", [5, 17], [5, 17], (4, 2, 64), None, {}),
        ("head-dim-32", [1, 2], [5, 17], (4, 2, 32), 16, {}),
    ):
        yield _random(rng, dtype, label, query, kv, heads, size, **options)


def findings(backend):
    """(case, what is wrong with it) of attention, and of every case of the table."""
    target = operation("attention")
    for dtype in HALF:
        for case in attention_cases(dtype):
            arguments = target.bind((), case)
            kernel = backend.get_kernel("attention", dtype=dtype)
            try:
                found = judge(backend, target, kernel, arguments, dtype, flushes=True)
            except Exception as error:  # noqa: BLE001 - it is what was found
                yield case.label, str(error)
                continue
            yield case.label, "" if found.passed else found.detail
    yield from ((label, "" if _right(backend, *case) else "wrong") for label, *case in _plain())
    yield "strided", "" if _strided(backend) else "wrong"
    for one in examine_operations(backend, operations=OFFERED):
        yield one.case, "" if one.passed else one.detail


def _plain():
    """Shapes that flashinfer takes; those of the table are small."""
    rng = np.random.default_rng(4)

    def drawn(*shape):
        return rng.standard_normal(shape).astype(DType.BF16.numpy)

    yield "rms_norm", "rms_norm", (drawn(3, 64), drawn(64)), {"eps": 1e-5}
    yield "rms_norm-3d", "rms_norm", (drawn(2, 3, 64), drawn(64)), {"eps": 1e-5}
    yield "silu", "silu_and_mul", (drawn(2, 3, 128),), {}
    yield "silu-fp32", "silu_and_mul", (drawn(3, 128).astype(np.float32),), {}
    angles = rng.uniform(0, 6, (50, 32))
    for rotary, style in ((64, "neox"), (64, "gptj"), (32, "neox"), (32, "gptj")):
        half = angles[:, : rotary // 2]
        cos_sin = np.concatenate((np.cos(half), np.sin(half)), 1).astype(np.float32)
        arrays = (drawn(4, 6, 64), drawn(4, 2, 64), np.array([0, 49, 7, 7]), cos_sin)
        yield f"rope-{style}-{rotary}", "rope", arrays, {"style": style}


def _right(backend, name, arrays, options):
    target = operation(name)
    arguments = target.bind(arrays, options)
    dtype = DType.parse(arrays[0].dtype)
    try:
        kernel = backend.get_kernel(name)  # for whatever comes: the kernel itself must look
        return judge(backend, target, kernel, arguments, dtype, flushes=True).passed
    except BackendError:
        return False


def _strided(backend):
    """Whether K and V by different strides are read right."""
    kernel, q, k, v, metadata = decode(backend)
    turned = v.transpose(1, 2).contiguous().transpose(1, 2)
    try:
        wanted = backend.to_numpy(kernel(q, k, v, metadata, scale=0.1))
        got = backend.to_numpy(kernel(q, k, turned, metadata, scale=0.1))
    except BackendError:
        return False
    return np.allclose(got.astype(np.float32), wanted.astype(np.float32), rtol=2**-6, atol=2**-6)


def decode(backend, lengths=(20, 5)):
    kernel = backend.get_kernel("attention", dtype="bf16")
    rng = np.random.default_rng(0)
    q, k, v = (
        backend.from_numpy(rng.standard_normal(shape).astype(DType.BF16.numpy))
        for shape in ((2, 4, 64), (4, 16, 2, 64), (4, 16, 2, 64))
    )
    metadata = AttentionMetadata.build([1, 1], lengths, [[0, 1], [2, 3]], 16)
    return kernel, q, k, v, metadata
