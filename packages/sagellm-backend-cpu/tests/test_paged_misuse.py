"""Misuse of the paged path: refused, with the numbers, and before a cache is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sagellm_backend import get_provider
from sagellm_backend.attention.paged_metadata import PagedAttentionMetadataBuilder
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend

BACKEND = PagedAttentionBackend(get_provider("cpu"))
BUILDER = PagedAttentionMetadataBuilder(4)
prefill, decode = BUILDER.build_prefill_metadata, BUILDER.build_decode_metadata
TABLE = torch.tensor([[2, 1], [3, 0]])


def missing_device():
    """An accelerator that this machine does not have."""
    return "xpu" if torch.cuda.is_available() else "cuda"


METADATA = {
    "no sequences": (lambda: prefill([], TABLE[:0]), r"seq_lens"),
    "no contexts": (lambda: decode([], TABLE[:0]), r"context_lens"),
    "negative length": (lambda: prefill([3, -2], TABLE), r"seq_lens\[1\] is -2"),
    "length 0": (lambda: prefill([0, 2], TABLE), r"seq_lens\[0\] is 0"),
    "negative context": (lambda: decode([3, -1], TABLE), r"context_lens\[1\] is -1"),
    "float lengths": (lambda: prefill([3.0, 2.0], TABLE), r"seq_lens.*3\.0"),
    "float contexts": (lambda: decode([3.5, 2], TABLE), r"context_lens.*3\.5"),
    "a truth as a length": (lambda: prefill([True, 2], TABLE), r"seq_lens.*True"),
    "text as lengths": (lambda: prefill("32", TABLE), r"seq_lens.*'32'"),
    "no lengths": (lambda: prefill(None, TABLE), r"seq_lens.*None"),
    "lengths of lengths": (lambda: prefill([[3, 2]], TABLE), r"seq_lens.*\[\[3, 2\]\]"),
    "a length beyond all memory": (lambda: decode([2**40, 1], TABLE), r"1099511627776"),
    "block_size 0": (lambda: PagedAttentionMetadataBuilder(0), r"block_size.* 0\."),
    "block_size -16": (lambda: PagedAttentionMetadataBuilder(-16), r"block_size.* -16\."),
    "block_size 4.0": (lambda: PagedAttentionMetadataBuilder(4.0), r"block_size.*4\.0"),
    "block -1": (lambda: prefill([3, 2], TABLE - 3), r"block_table\[0, 0\] is -1"),
    "block -1 in a decode": (lambda: decode([4, 2], [[2, -1], [3]]), r"block_table\[0, 1\] is -1"),
    "float table": (lambda: prefill([3, 2], TABLE.float()), r"block_table.*float32"),
    "bf16 table": (lambda: prefill([3, 2], TABLE.bfloat16()), r"block_table.*bfloat16"),
    "short table": (lambda: prefill([3, 9], TABLE), r"2 blocks.*9 needs 3 blocks of 4"),
    "no block for the new token": (lambda: decode([8, 2], TABLE), r"9 needs 3 blocks of 4"),
    "a table without blocks": (lambda: prefill([3, 2], TABLE[:, :0]), r"0 blocks.*needs 1"),
    "a table of objects": (lambda: prefill([1], [[object()]]), r"block_table"),
    "no table": (lambda: prefill([3, 2], None), r"block_table"),
    "extra rows": (lambda: prefill([3], TABLE), r"\(2, 2\).*batch 1"),
    "missing rows": (lambda: prefill([3, 2], TABLE[:1]), r"\(1, 2\).*batch 2"),
    "flat table": (lambda: prefill([3, 2], TABLE[0]), r"\(2,\)"),
    "one block for two prefills": (lambda: prefill([3, 2], [[5], [5]]), r"Block 5 .*\[0, 1\]"),
    "one block for two decodes": (lambda: decode([2, 1], [[5], [5]]), r"Block 5 .*\[0, 1\]"),
    "written by one, read by another": (
        lambda: decode([5, 1], [[5, 6], [5, 0]]),
        r"Block 5 .*0, 1",
    ),
    "one block twice": (lambda: prefill([8], [[5, 5]]), r"Block 5 .*\[0\]"),
    "heads 0": (lambda: prefill([3, 2], TABLE, 0, 8), r"num_kv_heads.* 0\."),
    "head_dim -8": (lambda: prefill([3, 2], TABLE, 2, -8), r"head_dim.* -8\."),
    "no such device word": (lambda: PagedAttentionMetadataBuilder(4, "gpu7"), r"gpu7"),
    "a device that is none": (lambda: PagedAttentionMetadataBuilder(4, object()), r"object"),
}


@pytest.mark.parametrize("case", METADATA)
def test_bad_metadata_is_not_made(case):
    build, words = METADATA[case]
    with pytest.raises(InvalidArgumentError, match=words):
        build()


def test_a_device_that_is_absent_is_refused_when_the_builder_is_made():
    with pytest.raises(UnavailableError, match=missing_device()):
        PagedAttentionMetadataBuilder(4, missing_device())


@pytest.mark.parametrize(
    "table", [TABLE, TABLE.numpy(), TABLE.tolist()], ids=["tensor", "array", "list"]
)
def test_without_a_device_it_is_that_of_the_tables(table):
    metadata = prefill(np.array([3, 2]), table)
    for tensor in (metadata.block_tables, metadata.slot_mapping):
        assert tensor.device == metadata.device == torch.device("cpu")


def test_metadata_does_not_change_with_what_it_was_made_of():
    lengths, table = [3, 2], TABLE.clone()
    metadata = prefill(lengths, table)
    lengths[0], table[:] = 9, 7
    assert metadata.seq_lens == [3, 2]
    assert metadata.block_tables.tolist() == TABLE.tolist()


def step(**changes):
    """The arguments of a good padded prefill of lengths 3 and 2, with changes."""
    torch.manual_seed(0)
    good = {
        "query": torch.randn(6, 4, 8),
        "key": torch.randn(6, 2, 8),
        "value": torch.randn(6, 2, 8),
        "attn_metadata": prefill([3, 2], TABLE),
        "kv_cache": (torch.zeros(4, 4, 2, 8), torch.zeros(4, 4, 2, 8)),
        "scale": 0.35,
        "attn_mask": None,
    }
    return good | changes


def rows(count, heads=2, head_dim=8, dtype=torch.float32):
    return torch.randn(count, heads, head_dim).to(dtype)


def cache(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


def mask(*shape, dtype=torch.bool):
    return torch.ones(shape, dtype=dtype)


ONE = torch.zeros(4, 4, 2, 8)

CALLS = {
    "fewer rows": (lambda: step(query=rows(4, 4), key=rows(4), value=rows(4)), r"4 rows.*5 new"),
    "more rows": (lambda: step(query=rows(7, 4), key=rows(7), value=rows(7)), r"7 rows.*5 new"),
    "rows of fewer keys": (lambda: step(key=rows(5), value=rows(5)), r"6 rows"),
    "keys without values": (lambda: step(value=rows(5)), r"\(5, 2, 8\)"),
    "padded decode": (lambda: step(attn_metadata=decode([3, 2], TABLE)), r"6 rows.*2 new"),
    "decode of another batch": (
        lambda: step(
            attn_metadata=decode([3], [[0]]), query=rows(2, 4), key=rows(2), value=rows(2)
        ),
        r"2 rows.*1 new",
    ),
    "block beyond the cache": (
        lambda: step(kv_cache=cache(3, 4, 2, 8)),
        r"block 3.*3 blocks, 0 to 2",
    ),
    "blocks of another size": (lambda: step(kv_cache=cache(4, 8, 2, 8)), r"4, 8, 2, 8"),
    "cache of other heads": (lambda: step(kv_cache=cache(4, 4, 4, 8)), r"4, 4, 4, 8"),
    "cache of another head size": (lambda: step(kv_cache=cache(4, 4, 2, 4)), r"4, 4, 2, 4"),
    "caches of two shapes": (lambda: step(kv_cache=(ONE, ONE[:3])), r"\(3, 4, 2, 8\)"),
    "no cache": (lambda: step(kv_cache=None), r"kv_cache must be the pair"),
    "decode without a cache": (
        lambda: step(attn_metadata=decode([3, 2], TABLE), kv_cache=None),
        r"kv_cache must be the pair",
    ),
    "one tensor as the cache": (lambda: step(kv_cache=torch.zeros(2, 4, 4, 2, 8)), r"pair"),
    "three caches": (lambda: step(kv_cache=(ONE, ONE, ONE)), r"pair"),
    "caches in one memory": (lambda: step(kv_cache=(ONE, ONE)), r"same memory"),
    "empty pair": (lambda: step(kv_cache=(None, None)), r"key cache.* 4 dimensions"),
    "cache of another dtype": (
        lambda: step(kv_cache=cache(4, 4, 2, 8, dtype=torch.float16)),
        r"float16.*float32",
    ),
    "keys of another dtype": (lambda: step(key=rows(6, dtype=torch.bfloat16)), r"bfloat16"),
    "float64": (
        lambda: step(
            query=rows(6, 4, dtype=torch.float64),
            key=rows(6, dtype=torch.float64),
            value=rows(6, dtype=torch.float64),
            kv_cache=cache(4, 4, 2, 8, dtype=torch.float64),
        ),
        r"float64",
    ),
    "keys elsewhere": (lambda: step(key=rows(6).to("meta")), r"meta.*cpu"),
    "4-D query": (lambda: step(query=torch.randn(2, 3, 4, 8)), r"3 dimensions.*\(2, 3, 4, 8\)"),
    "array as query": (lambda: step(query=np.zeros((6, 4, 8))), r"query must be a tensor"),
    "heads that do not divide": (lambda: step(query=rows(6, 3)), r"3 heads.*multiple of the 2"),
    "another head size": (lambda: step(query=rows(6, 4, 4)), r"head size 4"),
    "metadata of other heads": (
        lambda: step(attn_metadata=prefill([3, 2], TABLE, 4, 8)),
        r"4 heads",
    ),
    "metadata of another head size": (
        lambda: step(attn_metadata=prefill([3, 2], TABLE, 2, 16)),
        r"of 16",
    ),
    "no metadata": (lambda: step(attn_metadata=None), r"NoneType"),
    "foreign metadata": (lambda: step(attn_metadata=BUILDER), r"PagedAttentionMetadataBuilder"),
    "scale 0": (lambda: step(scale=0.0), r"scale.*0\.0"),
    "scale NaN": (lambda: step(scale=float("nan")), r"scale.*nan"),
    "no scale": (lambda: step(scale=None), r"scale.*None"),
    "window 0": (lambda: step(window=0), r"window.* 0"),
    "window 2.5": (lambda: step(window=2.5), r"window.*2\.5"),
    "softcap -1": (lambda: step(softcap=-1.0), r"softcap.*-1\.0"),
    "mask of another width": (lambda: step(attn_mask=mask(2, 1, 4, 4)), r"\(2, 1, 4, 4\)"),
    "mask of another batch": (lambda: step(attn_mask=mask(1, 1, 3, 3)), r"\(1, 1, 3, 3\)"),
    "mask for each head": (lambda: step(attn_mask=mask(2, 4, 3, 3)), r"\(2, 4, 3, 3\)"),
    "mask that is added": (lambda: step(attn_mask=mask(2, 1, 3, 3, dtype=torch.float32)), r"bool"),
    "mask that shows the future": (lambda: step(attn_mask=mask(2, 1, 3, 3)), r"lengths \[3, 2\]"),
    "mask of rows padded on the left": (
        lambda: step(
            attn_mask=mask(2, 1, 3, 3).tril()
            & torch.tensor([[1, 1, 1], [0, 1, 1]]).bool()[:, None, None]
        ),
        r"padded on the right",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_is_refused_and_writes_nothing(case):
    make, words = CALLS[case]
    arguments = make()
    given = arguments["kv_cache"]
    caches = [x for x in (() if given is None else given) if isinstance(x, torch.Tensor)]
    with pytest.raises(InvalidArgumentError, match=words):
        BACKEND.forward(**arguments)
    assert not any(x.any() for x in caches)


def test_the_call_that_the_bad_ones_were_made_of_is_good():
    arguments = step()
    assert BACKEND.forward(**arguments).shape == (6, 4, 8)
    assert all(x.any() for x in arguments["kv_cache"])


SIZES = [(-1, 16, 2, 8), (0, 16, 2, 8), (4, 0, 2, 8), (4, 16, 0, 8), (4, 16, 2, 0), (4, 16, 2, 8.0)]


@pytest.mark.parametrize("sizes", [*SIZES, (4, 16, "2", 8), (4, 16, None, 8), (True, 16, 2, 8)])
def test_a_cache_has_no_bad_shape(sizes):
    with pytest.raises(
        InvalidArgumentError, match=r"(num_blocks|block_size|num_kv_heads|head_dim) must"
    ):
        BACKEND.get_kv_cache_shape(*sizes)


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"window": True}, {"softcap": 0.0}, {"softcap": "5"}]
)
def test_a_backend_has_no_bad_limits(options):
    with pytest.raises(InvalidArgumentError, match="paged attention: (window|softcap) must be"):
        PagedAttentionBackend(get_provider("cpu"), **options)


def test_a_backend_keeps_to_its_block_size():
    backend = PagedAttentionBackend(get_provider("cpu"), block_size=16)
    with pytest.raises(InvalidArgumentError, match="made for blocks of 16.* blocks of 4"):
        backend.forward(**step())
    with pytest.raises(InvalidArgumentError, match=r"block_size.* 0\."):
        PagedAttentionBackend(get_provider("cpu"), block_size=0)


def test_the_switch_of_the_engine_is_refused_with_the_remedy():
    """How the engine makes the backend when SAGELLM_ENABLE_CUDA_PAGED_ATTENTION is set."""
    with pytest.raises(CapabilityError, match="Unset SAGELLM_ENABLE_CUDA_PAGED_ATTENTION"):
        PagedAttentionBackend(block_size=16, use_vllm_kernel=True)
    assert PagedAttentionBackend(block_size=16, use_vllm_kernel=False).block_size == 16


def test_block_copies_are_not_offered():
    assert not hasattr(BACKEND, "copy_blocks"), "copies are KVCopyPlan's"
