"""flashinfer as far as we call it: its real signatures, its refusals, and results by NumPy.

The refusals are the checks of its C++ sources (csrc/norm.cu, rope.cu, batch_decode.cu).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

LINES = Path(__file__).with_name("flashinfer_signatures.txt").read_text().splitlines()[1:]
CALLED = []
"""(name, arguments by name) of every call."""

HALF = {torch.float16, torch.bfloat16}


def _signature(line):
    scope = {}
    exec(f"def called({line.partition('(')[2][:-1]}): ...", scope)
    return inspect.signature(scope["called"])


SIGNATURES = {line.partition("(")[0]: _signature(line) for line in LINES}


def bind(name, args, kwargs):
    """The arguments by name, as the real function would get them."""
    bound = SIGNATURES[name].bind(*args, **kwargs)
    bound.apply_defaults()
    CALLED.append((name, bound.arguments))
    return SimpleNamespace(**bound.arguments)


def demand(condition, what):
    if not condition:
        raise RuntimeError(f"flashinfer: {what}")


def _native(*tensors):
    for one in tensors:
        demand(not one.is_cpu, "must be a CUDA tensor")
        demand(one.stride(-1) == 1 or one.shape[-1] == 1, "last dimension must be contiguous")
        demand(one.device == tensors[0].device, "must be on one device")


def wide(tensor):
    return tensor.cpu().double().numpy()


def made(array, like):
    return torch.from_numpy(array).to(like.dtype).to(like.device)


def rmsnorm(*args, **kwargs):
    call = bind("rmsnorm", args, kwargs)
    _native(call.input, call.weight)
    demand(call.input.dim() in {2, 3} and call.input.dtype in HALF, "unsupported input")
    demand(call.weight.dtype is call.input.dtype, "the kernel reads the weight as the input's type")
    x = wide(call.input)
    norm = x / np.sqrt((x * x).mean(-1, keepdims=True) + call.eps)
    return made(norm * wide(call.weight), call.input)


def silu_and_mul(*args, **kwargs):
    call = bind("silu_and_mul", args, kwargs)
    _native(call.input)
    demand(call.input.is_contiguous() and call.input.dtype in HALF, "unsupported input")
    gate, up = np.split(wide(call.input), 2, -1)
    return made(gate / (1 + np.exp(-gate)) * up, call.input)


def apply_rope_with_cos_sin_cache(*args, **kwargs):
    call = bind("apply_rope_with_cos_sin_cache", args, kwargs)
    _native(call.query, call.key, call.cos_sin_cache, call.positions)
    demand(call.query.dim() == call.key.dim() == 2, "shape (nnz, heads * head_size)")
    demand(call.head_size in {64, 128, 256, 512}, f"Unsupported head_dim: {call.head_size}")
    demand(call.query.dtype in HALF, "unsupported dtype")
    demand(call.cos_sin_cache.dtype is torch.float32, "cos_sin_cache should be float32")
    demand(call.cos_sin_cache.is_contiguous() and call.positions.is_contiguous(), "contiguous")
    demand(call.positions.dtype in {torch.int32, torch.int64}, "unsupported positions")
    angles = wide(call.cos_sin_cache)[wide(call.positions).astype(int)][:, None]
    return tuple(
        made(_turned(wide(one), call.head_size, angles, call.is_neox), one)
        for one in (call.query, call.key)
    )


def _turned(x, head_size, angles, is_neox):
    heads = x.reshape(len(x), -1, head_size).copy()
    size = angles.shape[-1]
    cos, sin = np.split(angles, 2, -1)
    halves = (slice(0, size // 2), slice(size // 2, size))
    pair = halves if is_neox else (slice(0, size, 2), slice(1, size, 2))
    first, second = (heads[..., part].copy() for part in pair)
    heads[..., pair[0]] = first * cos - second * sin
    heads[..., pair[1]] = second * cos + first * sin
    return heads.reshape(x.shape)


class _Wrapper:
    def __init__(self, *args, **kwargs):
        call = bind(f"{self.NAME}.__init__", (self, *args), kwargs)
        demand(call.kv_layout == "NHD" and call.backend == "fa2", "not simulated")
        demand(call.float_workspace_buffer.numel() >= 1 << 20, "the workspace is small")
        demand(not call.float_workspace_buffer.cpu().any(), "it must be zero before its first use")
        self.tensor_cores = getattr(call, "use_tensor_cores", True)
        self.planned = None

    def _keep(self, call, indptr, indices, last, **more):
        for one in (indptr, last, call.seq_lens):
            demand(
                one.is_cpu and one.is_pinned() and one.dtype is torch.int32, "waits to be copied"
            )
        demand(not indices.is_cpu and indices.dtype is torch.int32, "waits to be copied")
        demand(call.q_data_type in HALF and call.kv_data_type is call.q_data_type, "dtypes")
        pages = np.diff(indptr.numpy())
        lengths = (pages - 1) * call.page_size + last.numpy()
        demand((lengths == call.seq_lens.numpy()).all(), "lengths that contradict the pages")
        demand(len(indices) == indptr[-1], "as many indices as pages")
        self.planned = SimpleNamespace(
            call=call, indptr=indptr.numpy(), indices=indices.cpu().numpy(), lengths=lengths, **more
        )

    def run(self, *args, **kwargs):
        run = bind(f"{self.NAME}.run", (self, *args), kwargs)
        k, v = run.paged_kv_cache
        _native(run.q, k, v)
        plan, call = self.planned, self.planned.call
        group, rest = divmod(call.num_qo_heads, call.num_kv_heads)
        demand(not rest, "heads that do not divide")
        demand(self.tensor_cores or group in {1, 2, 3, 4, 6, 8, 16}, f"group_size: {group}")
        demand(k.stride() == v.stride(), "K/V strides differ")
        demand(k.shape[1:] == (call.page_size, call.num_kv_heads, plan.dim), "not as planned")
        demand(run.q.shape[1:] == (call.num_qo_heads, plan.dim), "not as planned")
        demand(run.q.dtype is k.dtype is call.q_data_type, "dtypes not as planned")
        demand(plan.dim in {64, 128, 256, 512}, f"Unsupported head_dim: {plan.dim}")
        keys, values, queries = wide(k), wide(v), wide(run.q)
        out = np.empty_like(queries)
        for at, length in enumerate(plan.lengths):
            first, last = plan.cu_query[at : at + 2]
            pages = plan.indices[plan.indptr[at] : plan.indptr[at + 1]]
            rows = [one[pages].reshape(-1, *one.shape[2:])[:length] for one in (keys, values)]
            out[first:last] = _attend(queries[first:last], *rows, call, plan.causal)
        return made(out, run.q)


def _attend(q, k, v, call, causal):
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(one, group, 1) for one in (k, v))
    logits = np.einsum("qhd,khd->hqk", q, k) * call.sm_scale
    if call.logits_soft_cap:
        logits = call.logits_soft_cap * np.tanh(logits / call.logits_soft_cap)
    key = np.arange(len(k))
    query = np.arange(len(k) - len(q), len(k))[:, None]
    seen = key <= query if causal else np.ones((len(q), len(k)), bool)
    if call.window_left >= 0:
        seen = seen & (key + call.window_left >= query)
    logits = np.where(seen, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    NAME = "BatchDecodeWithPagedKVCacheWrapper"

    def plan(self, *args, **kwargs):
        given = bind(f"{self.NAME}.plan", (self, *args), kwargs)
        demand(not given.deprecated_positional_args, "deprecated positional arguments")
        call = bind(f"{self.NAME}._plan_impl", (self, *args), kwargs)
        steps = np.arange(len(call.last_page_len) + 1)
        self._keep(
            call,
            call.indptr,
            call.indices,
            call.last_page_len,
            dim=call.head_dim,
            causal=False,
            cu_query=steps,
        )


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    NAME = "BatchPrefillWithPagedKVCacheWrapper"

    def plan(self, *args, **kwargs):
        call = bind(f"{self.NAME}.plan", (self, *args), kwargs)
        demand(call.qo_indptr.is_cpu and call.qo_indptr.dtype is torch.int32, "waits to be copied")
        self._keep(
            call,
            call.paged_kv_indptr,
            call.paged_kv_indices,
            call.paged_kv_last_page_len,
            dim=call.head_dim_qk,
            causal=call.causal,
            cu_query=call.qo_indptr.numpy(),
        )
