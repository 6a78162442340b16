"""Reference kernels of attention, in float64, and of what the 310P needs around it."""

from __future__ import annotations

import torch

from npu_l0.kernels import A2_A3, back, wide
from npu_l0.library import demand, operator

HALF = (torch.float16, torch.bfloat16)
INFERENCE_310P = range(200, 206)
UNUSED = [
    "pse_shift",
    "dequant_scale1",
    "quant_scale1",
    "dequant_scale2",
    "quant_scale2",
    "quant_offset2",
    "antiquant_scale",
    "antiquant_offset",
    "query_rope",
    "key_rope",
    "learnable_sink",
]


def attend(query, keys, values, scale, hidden=None):
    """One sequence: (queries, heads, size) against (keys, kv heads, size)."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (wide(x).repeat_interleave(group, 1) for x in (keys, values))
    logits = torch.einsum("qhd,khd->hqk", wide(query), keys) * scale
    if hidden is not None:
        logits = logits.masked_fill(hidden, -torch.inf)
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1), values)


def gather(cache, table, row, length, heads):
    """The keys of one sequence, from a cache of (blocks, tokens, heads * size)."""
    size = cache.shape[1]
    blocks = table[row, : -(-length // size)].long()
    return cache.cpu()[blocks].flatten(0, 1)[:length].unflatten(1, (heads, -1))


def check_common(call, heads, kv_heads):
    arrays = (call.query, call.key, call.value)
    demand(all(x.is_contiguous() for x in arrays), "not contiguous")
    demand(call.query.dtype in HALF, "neither fp16 nor bf16")
    demand(all(x.dtype is call.query.dtype for x in arrays), "dtypes differ")
    demand(heads % kv_heads == 0 and heads // kv_heads <= 64, "no group of up to 64 heads")
    demand(call.key.shape == call.value.shape, "key and value differ")
    for name in UNUSED:
        demand(getattr(call, name, None) is None, f"{name} is given")


def check_pages(call, lengths, kv_heads, size):
    table, cache = call.block_table, call.key
    demand(table.dtype is torch.int32 and table.dim() == 2, "block_table is not 2-D int32")
    demand(table.shape[0] == len(lengths), "block_table has another batch")
    demand(cache.dim() == 3 and cache.shape[2] == kv_heads * size, "the cache is not (n, s, H)")
    demand(cache.shape[2] <= 65535, "H is above 65535")
    demand(call.block_size == cache.shape[1] == 128, f"blocks have {cache.shape[1]} tokens")
    counts = [-(-length // 128) for length in lengths]
    demand(table.shape[1] >= max(counts), "block_table is too narrow")
    demand(sum(counts) <= cache.shape[0], "the cache has fewer blocks than the batch uses")


def decode(call):
    """Decodes as (batch, 1, heads, size) over pages."""
    demand(call.input_layout == "BSND", f"layout {call.input_layout}")
    batch, length, heads, size = call.query.shape
    kv_heads, lengths = call.num_key_value_heads, call.actual_seq_lengths_kv
    demand(length == 1, f"{length} queries per sequence")
    demand(heads == call.num_heads, "num_heads is not that of the query")
    demand(size % 16 == 0 and size <= 512, f"heads of {size}")
    demand(lengths is not None and len(lengths) == batch, "actual_seq_lengths_kv is not per batch")
    demand(call.atten_mask is None and call.sparse_mode == 0, "a mask for one query")
    check_common(call, heads, kv_heads)
    demand(call.block_table is not None, "no block_table")
    check_pages(call, lengths, kv_heads, size)
    table = call.block_table.cpu()
    out = [
        attend(
            call.query.cpu()[row],
            gather(call.key, table, row, n, kv_heads),
            gather(call.value, table, row, n, kv_heads),
            call.scale,
        )
        for row, n in enumerate(lengths)
    ]
    return back(torch.stack(out), call.query)


@operator("npu::npu_fused_infer_attention_score", A2_A3)
def npu_fused_infer_attention_score(call):
    return decode(call), torch.empty(0, device=call.query.device)


def _decode_workspace(call):
    return 512 * call.query.shape[0] * call.num_heads


@operator("npu::_npu_fused_infer_attention_score_get_max_workspace", A2_A3)
def _npu_fused_infer_attention_score_get_max_workspace(call):
    demand(call.actual_seq_lengths_kv is not None, "no actual_seq_lengths_kv")
    nbytes = _decode_workspace(call)
    return torch.empty(nbytes, dtype=torch.uint8, device=call.query.device)


@operator("npu::npu_fused_infer_attention_score.out", A2_A3)
def npu_fused_infer_attention_score_out(call):
    """The same into arrays that the caller gives."""
    demand(call.workspace is not None, "no workspace")
    demand(call.workspace.numel() >= _decode_workspace(call), "the workspace is too small")
    out, lse = call.out
    demand(out.shape == call.query.shape and out.is_contiguous(), "out is not like query")
    demand(out.dtype is call.query.dtype, "out has another dtype")
    demand(lse.numel() == 1, "an lse that was not asked for")
    out.copy_(decode(call))
    return out, lse


@operator("npu::npu_fused_infer_attention_score_v2", A2_A3)
def npu_fused_infer_attention_score_v2(call):
    """Prefills as (tokens, heads, size), over packed keys or pages."""
    demand(call.input_layout == "TND", f"layout {call.input_layout}")
    tokens, heads, size = call.query.shape
    ends, kv_heads = call.actual_seq_qlen, call.num_key_value_heads
    demand(size == 128, f"heads of {size}")
    demand(heads == call.num_query_heads, "num_query_heads is not that of the query")
    demand(ends == sorted(ends) and ends[-1] == tokens, "actual_seq_qlen is not cumulative")
    check_common(call, heads, kv_heads)
    lengths = call.actual_seq_kvlen
    demand(len(lengths) == len(ends), "actual_seq_kvlen is not per batch")
    paged = call.block_table is not None
    if paged:
        check_pages(call, lengths, kv_heads, size)
    else:
        demand(lengths == sorted(lengths), "actual_seq_kvlen is not cumulative")
        demand(lengths[-1] == call.key.shape[0], "actual_seq_kvlen is not that of key")
    check_mask(call)
    out, first, start = [], 0, 0
    for row, (last, end) in enumerate(zip(ends, lengths, strict=True)):
        if paged:
            keys, values = (
                gather(x, call.block_table.cpu(), row, end, kv_heads)
                for x in (call.key, call.value)
            )
        else:
            keys, values = call.key[start:end], call.value[start:end]
            start = end
        hidden = causal(last - first, len(keys)) if call.sparse_mode == 3 else None
        out.append(attend(call.query[first:last], keys, values, call.softmax_scale, hidden))
        first = last
    return back(torch.cat(out), call.query), torch.empty(0, device=call.query.device)


def check_mask(call):
    demand(call.sparse_mode in (0, 3), f"sparse_mode {call.sparse_mode}")
    if call.sparse_mode == 0:
        demand(call.atten_mask is None, "a mask that sparse_mode 0 would read whole")
        return
    demand(call.atten_mask is not None, "sparse_mode 3 without its mask")
    demand(call.atten_mask.shape == (2048, 2048), "the mask is not 2048 x 2048")
    wanted = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
    demand(bool((call.atten_mask.cpu().bool() == wanted).all()), "the mask is no upper triangle")


def causal(queries, keys):
    """What is hidden, with the last query at the last key."""
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


def _paged_workspace(call):
    return 1024 * call.query.shape[0] * call.num_heads


@operator("atb::_npu_paged_attention_get_workspace", INFERENCE_310P)
def _npu_paged_attention_get_workspace(call):
    return torch.empty(_paged_workspace(call), dtype=torch.uint8, device=call.query.device)


@operator("atb::_npu_paged_attention", INFERENCE_310P)
def _npu_paged_attention(call):
    """Decodes over caches of (blocks, heads * size / 16, tokens, 16)."""
    demand(call.workspace is not None, "no workspace")
    demand(call.workspace.numel() >= _paged_workspace(call), "the workspace is too small")
    demand(call.query.dtype is call.key_cache.dtype is torch.float16, "not fp16")
    batch, heads, size = call.query.shape
    demand(heads == call.num_heads and size % 16 == 0 and size <= 128, "heads do not fit")
    tiles = call.num_kv_heads * size // 16
    demand(call.key_cache.shape[1:] == (tiles, 128, 16), "the cache is not in tiles of 16")
    demand(call.key_cache.shape == call.value_cache.shape, "the caches differ")
    table, lengths = call.block_table, call.context_lens
    demand(table.dtype is torch.int32 and len(table) == batch, "block_table is not int32 per batch")
    demand(batch <= 2000, "more than 2000 sequences")
    demand(lengths.is_cpu and lengths.dtype is torch.int32, "context_lens is no host int32")
    keys, values = (x.cpu().transpose(1, 2).flatten(2) for x in (call.key_cache, call.value_cache))
    for row, n in enumerate(lengths.tolist()):
        pair = (gather(x, table.cpu(), row, n, call.num_kv_heads) for x in (keys, values))
        out = attend(call.query[row : row + 1], *pair, call.scale_value)
        call.out[row : row + 1].copy_(back(out, call.query))


@operator("atb::_npu_flash_attention", INFERENCE_310P)
def _npu_flash_attention(call):
    """Prefills of whole prompts, rows padded to a multiple of 16."""
    arrays = (call.query, call.key, call.value, call.out)
    demand(all(x.dtype is torch.float16 for x in arrays), "not fp16")
    demand(all(len(x) % 16 == 0 and x.is_contiguous() for x in arrays), "rows are not aligned")
    demand(call.query.shape[1] == call.num_heads, "num_heads is not that of the query")
    demand(call.key.shape[1] == call.num_kv_heads, "num_kv_heads is not that of the key")
    demand(call.seq_len.is_cpu and call.seq_len.dtype is torch.int32, "seq_len is no host int32")
    batch, columns, rows, tile = call.mask.shape
    demand(tile == 16 and columns * 16 == rows, "the mask is not in tiles of 16")
    demand(batch == len(call.seq_len), "the mask is not per batch")
    demand(rows >= call.seq_len.max(), "the mask is too small")
    hidden = call.mask.cpu().transpose(1, 2).flatten(2).isinf()
    first = 0
    for row, n in enumerate(call.seq_len.tolist()):
        part = slice(first, first + n)
        query, key, value = (x[part] for x in arrays[:3])
        out = attend(query, key, value, call.scale_value, hidden[row, :n, :n])
        call.out[part].copy_(back(out, call.query))
        first += n
