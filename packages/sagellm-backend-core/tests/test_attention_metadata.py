import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.errors import BackendError, InvalidArgumentError

build = AttentionMetadata.build


def test_ragged_defaults_to_keys_like_queries():
    metadata = build([3, 1])
    assert metadata.mode == "ragged_prefill"
    assert (metadata.batch, metadata.num_query_tokens) == (2, 4)
    assert (metadata.max_query_len, metadata.max_kv_len) == (3, 3)
    assert metadata.cu_query.tolist() == metadata.cu_kv.tolist() == [0, 3, 4]
    assert metadata.block_table is None
    assert metadata.positions().tolist() == [0, 1, 2, 0]


def test_modes():
    assert build([1, 1]).mode == "ragged_prefill"
    assert build([1, 1], [4, 5], [[0], [1]], 8).mode == "paged_decode"
    assert build([1, 2], [4, 5], [[0], [1]], 8).mode == "paged_prefill"


def test_paged_slots_are_those_of_the_new_tokens():
    metadata = build([1, 3], [5, 9], [[6, 1], [2, 3, 4]], 4)
    assert metadata.positions().tolist() == [4, 6, 7, 8]
    assert metadata.slots().tolist() == [4, 14, 15, 16]
    assert metadata.slots().dtype == np.int64
    assert metadata.block_table.tolist() == [[6, 1, -1], [2, 3, 4]]
    assert (metadata.cu_query.tolist(), metadata.cu_kv.tolist()) == ([0, 1, 4], [0, 5, 14])


def test_dtypes_and_immutability():
    lens, table = np.array([1, 1]), np.array([[0], [1]])
    metadata = build(lens, lens + 1, table, 2)
    for array in (metadata.query_lens, metadata.kv_lens, metadata.block_table, metadata.cu_query,
                  metadata.cu_kv):  # fmt: skip
        assert array.dtype == np.int32
        with pytest.raises(ValueError, match="read-only"):
            array.flat[0] = 7
    for array in (metadata.slots(), metadata.positions()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    lens[0], table[0] = 9, 9
    assert (metadata.query_lens[0], metadata.block_table[0, 0]) == (1, 0)
    with pytest.raises(AttributeError, match="immutable"):
        metadata.batch = 3
    with pytest.raises(TypeError, match="build"):
        AttentionMetadata()
    metadata.native["device copy"] = object()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "one sequence at least"),
        (([[1]],), r"shape is \(1, 1\)"),
        (([1, 0],), r"query_lens\[1\] is 0"),
        (([1.0],), "must be integers, not float64"),
        (([True],), "must be integers, not bool"),
        ((["1"],), "must be integers"),
        ((None,), "must be integers"),
        (([[1], [1, 2]],), "query_lens"),
        (([2**31],), "the limit is 2147483647"),
        (([2**30, 2**30],), "add up to 2147483648"),
        (([1], [1, 2]), "1 query_lens and 2 kv_lens"),
        (([3], [2]), r"kv_lens\[0\] is 2 and query_lens\[0\] is 3"),
        (([1], [5], [[0, 1]]), "block_size"),
        (([1], [5], [[0, 1]], 0), "block_size"),
        (([1], [5], [[0, 1]], True), "block_size"),
        (([1], [5], None, 4), "without a block_table"),
        (([1], [5], [[0]], 4), r"kv_lens\[0\] of 5 needs 2 blocks of 4"),
        (([1], [5], [[0, -1]], 4), r"block_table\[0, 1\] is -1"),
        (([1, 1], [5, 5], [[0, 1], [2]], 4), r"block_table\[1, 1\] is -1"),
        (([1], [5], [[0, 1], [2, 3]], 4), r"shape \(2, 2\), wanted .* batch 1"),
        (([1], [5], [0, 1], 4), "block_table"),
        (([1], [5], [], 4), "block_table"),
        (([1], [5], 7, 4), "block_table"),
        (([1], [5], [[0.0, 1.0]], 4), "must be integers"),
        (([1], [5], [[0, 2**40]], 4), "limit"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(InvalidArgumentError, match=words):
        build(*arguments)


def test_blocks_beyond_those_in_use_are_free():
    assert build([1], [3], [[0, -1, -1]], 4).slots().tolist() == [2]
    build([1], [3], [[0, 99]], 4).check_blocks(1)


def test_check_blocks_refuses_ids_beyond_the_cache():
    metadata = build([1, 1], [5, 3], [[0, 7], [2, 9]], 4)
    metadata.check_blocks(8)
    with pytest.raises(InvalidArgumentError, match="block 7, and the cache has 7") as caught:
        metadata.check_blocks(7)
    assert caught.value.numbers == {"block": 7, "num_blocks": 7}
    build([5]).check_blocks(0)


def test_a_prefix_may_be_shared_but_not_written():
    shared = [[0, 1], [0, 2]]
    assert build([1, 1], [5, 6], shared, 4).slots().tolist() == [4, 9]
    with pytest.raises(InvalidArgumentError, match=r"Block 0 would be written by .*\[0, 1\]"):
        build([1, 3], [3, 4], shared, 4).slots()


def test_ragged_keys_have_no_slots():
    with pytest.raises(InvalidArgumentError, match="no slots"):
        build([5]).slots()


def test_threads_share_one_object():
    metadata = build([1] * 64, [33] * 64, np.arange(192).reshape(64, 3), 16)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(metadata.slots())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(slots, seen[0]) for slots in seen)
    assert len(seen) == 8


@given(
    lens=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=5),
    block_size=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_slots_are_the_loop(lens, block_size, seed):
    query, kv = [new for new, _ in lens], [new + old for new, old in lens]
    order = iter(np.random.default_rng(seed).permutation(400).tolist())
    table = [[next(order) for _ in range(-(-length // block_size))] for length in kv]
    want = [
        table[i][position // block_size] * block_size + position % block_size
        for i, (new, old) in enumerate(lens)
        for position in range(old, old + new)
    ]
    metadata = build(query, kv, table, block_size)
    assert metadata.slots().tolist() == want
    assert metadata.max_kv_len == max(kv)


junk = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(query=junk, kv=junk, table=junk, block_size=junk)
def test_anything_is_accepted_or_refused_by_our_error(query, kv, table, block_size):
    try:
        build(query, kv, table, block_size)
    except Exception as error:  # noqa: BLE001 - the type is what is tested
        assert isinstance(error, BackendError), repr(error)  # noqa: PT017
