"""Deliberate mistakes in calls of the vendor's operators, through its own dispatcher and queue."""

from __future__ import annotations

import pytest
import torch

HALF = torch.float16


def decode(**changed):
    """A call as the provider makes it, with something changed."""
    arguments = {
        "query": torch.ones(2, 1, 8, 128, dtype=HALF, device="npu"),
        "key": torch.ones(4, 128, 256, dtype=HALF, device="npu"),
        "value": torch.ones(4, 128, 256, dtype=HALF, device="npu"),
        "actual_seq_lengths_kv": [130, 5],
        "block_table": torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device="npu"),
        "num_heads": 8,
        "num_key_value_heads": 2,
        "scale": 0.1,
        "input_layout": "BSND",
        "block_size": 128,
        **changed,
    }
    out, _ = torch.ops.npu.npu_fused_infer_attention_score(**arguments)
    torch.npu.synchronize()
    return out


def test_the_call_itself_is_right(backend):
    assert float(decode().float().cpu().mean()) == 1


def test_a_wrong_keyword_is_refused_by_the_dispatcher(backend):
    with pytest.raises(RuntimeError, match="Unknown keyword argument 'block_tables'"):
        decode(block_tables=None)


def test_a_block_table_of_int64_comes_out_when_the_stream_is_waited_for(backend):
    with pytest.raises(RuntimeError, match="block_table is not 2-D int32"):
        decode(block_table=torch.zeros(2, 2, dtype=torch.int64, device="npu"))
    assert float(decode().float().cpu().mean()) == 1  # and the device works on


def test_an_argument_on_the_host_is_refused(backend):
    with pytest.raises(RuntimeError, match="block_table is on cpu"):
        decode(block_table=torch.zeros(2, 2, dtype=torch.int32))


def test_a_missing_workspace_is_caught(backend):
    query = torch.ones(2, 1, 8, 128, dtype=HALF, device="npu")
    cache = torch.ones(4, 128, 256, dtype=HALF, device="npu")
    arguments = {
        "actual_seq_lengths_kv": [130, 5],
        "block_table": torch.zeros(2, 2, dtype=torch.int32, device="npu"),
        "num_heads": 8,
        "num_key_value_heads": 2,
        "scale": 0.1,
        "input_layout": "BSND",
        "block_size": 128,
    }
    out = [torch.empty_like(query), torch.empty(1, device="npu")]
    torch.ops.npu.npu_fused_infer_attention_score.out(query, cache, cache, **arguments, out=out)
    with pytest.raises(RuntimeError, match="no workspace"):
        torch.npu.synchronize()
