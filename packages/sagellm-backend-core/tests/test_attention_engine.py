"""What an engine asks about attention backends: which there are, and what they have done."""

from __future__ import annotations

import threading

import pytest

from sagellm_backend import attention, frameworks
from sagellm_backend.errors import InvalidArgumentError

CALL = {
    "backend_name": "paged",
    "path_name": "decode",
    "is_prefill": False,
    "query_shape": (2, 4, 8),
    "key_shape": (2, 2, 8),
    "value_shape": (2, 2, 8),
    "has_kv_cache": True,
    "has_block_tables": True,
    "has_context_lens": True,
    "num_seqs": 2,
    "query_tokens": 2,
    "max_context_len": 7,
    "max_blocks_per_seq": 1,
}


@pytest.fixture(autouse=True)
def _forgotten():
    attention.reset_attention_diagnostics()
    yield
    attention.reset_attention_diagnostics()


def test_nothing_has_been_called():
    assert attention.get_attention_diagnostics() == {"_meta": {"latest_call": None}}


def test_calls_are_counted_by_backend_and_path():
    prefill = {
        "is_prefill": True,
        "query_tokens": 9,
        "max_context_len": 5,
        "query_shape": (9, 4, 8),
    }
    attention.record_attention_call(**CALL)
    attention.record_attention_call(**{**CALL, **prefill, "has_context_lens": False})
    attention.record_attention_call(**{**CALL, "path_name": "other"})
    found = attention.get_attention_diagnostics()
    assert set(found) == {"_meta", "paged:decode", "paged:other"}
    path = found["paged:decode"]
    counts = {name: value for name, value in path.items() if name.endswith(("_calls", "_tokens"))}
    assert counts == {
        "total_calls": 2,
        "prefill_calls": 1,
        "decode_calls": 1,
        "kv_cache_calls": 2,
        "block_table_calls": 2,
        "context_lens_calls": 1,
        "total_query_tokens": 11,
        "total_context_tokens": 12,
    }
    assert path["last_query_shape"] == (9, 4, 8)
    assert path["last_has_context_lens"] is False
    assert found["_meta"]["latest_call"] == {**CALL, "path_name": "other"}


def test_fallbacks_are_counted_by_reason():
    for reason in ("no blocks", "no blocks", "mask"):
        attention.record_attention_fallback(backend_name="paged", path_name="p", reason=reason)
    path = attention.get_attention_diagnostics()["paged:p"]
    assert path["fallback_reasons"] == {"no blocks": 2, "mask": 1}
    assert path["total_calls"] == 0


def test_the_counts_are_the_callers_copy():
    attention.record_attention_call(**CALL)
    attention.get_attention_diagnostics()["paged:decode"]["fallback_reasons"]["mine"] = 1
    assert attention.get_attention_diagnostics()["paged:decode"]["fallback_reasons"] == {}


def test_no_call_of_many_threads_is_lost():
    def work():
        for _ in range(500):
            attention.record_attention_call(**CALL)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert attention.get_attention_diagnostics()["paged:decode"]["total_calls"] == 2000


@pytest.mark.parametrize("installed", [True, False])
def test_paged_needs_torch(monkeypatch, installed):
    monkeypatch.setattr(frameworks, "is_installed", lambda _: installed)
    found = attention.get_attention_backend_availability()
    assert {name: item["selectable"] for name, item in found.items()} == {
        "engine": True,
        "paged": installed,
    }
    assert found["paged"]["unavailable_reason"] == (None if installed else "torch is not installed")
    assert attention.get_attention_backend_availability("paged") == {"paged": found["paged"]}
    assert attention.is_attention_backend_available("paged") is installed


def test_a_backend_that_does_not_exist():
    assert not attention.is_attention_backend_available("flash")
    with pytest.raises(InvalidArgumentError, match="'flash'.*engine, paged"):
        attention.get_attention_backend_availability("flash")
