"""Copies between KV pools: the blocks that they move, and the batches that are refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_pools import BLOCKS, FORMS, contents, fill, layout_of, pair

from sagellm_backend import CPUBackendProvider, DType, KVLayout
from sagellm_backend.errors import InvalidArgumentError, UnavailableError


@settings(max_examples=60, deadline=None)
@given(data=st.data(), same=st.booleans(), form=st.sampled_from(FORMS))
def test_any_batch_moves_its_blocks_and_nothing_else(data, same, form):
    backend = CPUBackendProvider()
    count = 24
    if same:
        source = target = backend.kv_pool(layout_of(DType.INT8, *form), count)
        pool_ids = source.alloc(count)
        order = data.draw(st.permutations(pool_ids.tolist()))
        length = data.draw(st.integers(0, count // 2))
        source_ids, target_ids = order[:length], order[length : 2 * length]
    else:
        source, target = pair(backend, DType.INT8, form, (count, count + 3))
        length = data.draw(st.integers(0, count))
        source_ids = data.draw(st.permutations(source.alloc(count).tolist()))[:length]
        target_ids = data.draw(st.permutations(target.alloc(count + 3).tolist()))[:length]
    if data.draw(st.booleans()):  # neighbours, which are copied as runs
        source_ids, target_ids = sorted(source_ids), sorted(target_ids)
    read, wanted = fill(source, 6), fill(target, 6 if same else 7)
    backend.kv_copy_plan(source, target).copy(np.array(source_ids, np.int32), target_ids)
    wanted[:, target_ids] = read[:, source_ids]
    assert (contents(target) == wanted).all()
    if not same:
        assert (contents(source) == read).all()


class TestCopyPlan:
    def test_one_plan_copies_many_times(self, backend):
        source, target = pair(backend)
        with source, target:
            ids, other = source.alloc(2), target.alloc(2)
            plan = backend.kv_copy_plan(source, target)
            assert plan.direction == "device-to-host"
            assert backend.kv_copy_plan(target, source).direction == "host-to-device"
            for seed in (1, 2):
                read = fill(source, seed)
                plan.copy(ids, other, backend.create_stream())
                assert (contents(target)[:, other] == read[:, ids]).all()

    @pytest.mark.parametrize("empty", [[], (), range(0), np.empty(0, np.int32)])
    def test_an_empty_batch_is_nothing(self, backend, empty):
        source, target = pair(backend)
        with source, target:
            before = fill(target, 1)
            transfer = backend.kv_copy_plan(source, target).copy(empty, empty)
            transfer.wait()
            assert (transfer.done(), transfer.num_blocks, transfer.nbytes) == (True, 0, 0)
            assert (contents(target) == before).all()

    @pytest.mark.parametrize(
        ("source_ids", "target_ids"),
        [
            pytest.param([0, 0], [0, 1], id="duplicate sources"),
            pytest.param([0, 1], [1, 1], id="duplicate targets"),
            pytest.param([0, 1], [0], id="unequal"),
            pytest.param([0], [], id="none"),
            pytest.param([5], [0], id="free source"),
            pytest.param([0], [5], id="free target"),
            pytest.param([BLOCKS], [0], id="source outside"),
            pytest.param([0], [-1], id="target outside"),
            pytest.param([0.0], [0], id="float"),
            pytest.param([True], [0], id="bool"),
            pytest.param("0", [0], id="text"),
            pytest.param(None, None, id="nothing"),
            pytest.param([[0]], [[0]], id="nested"),
            pytest.param([10**30], [0], id="huge"),
        ],
    )
    def test_batches_that_are_wrong_move_nothing(self, backend, source_ids, target_ids):
        source, target = pair(backend)
        with source, target:
            source.alloc(4)
            target.alloc(4)
            read, before = fill(source, 1), fill(target, 2)
            with pytest.raises(InvalidArgumentError):
                backend.kv_copy_plan(source, target).copy(source_ids, target_ids)
            assert (contents(target) == before).all()
            assert (contents(source) == read).all()

    def test_within_one_pool_no_block_is_both(self, backend):
        with backend.kv_pool(layout_of(), BLOCKS) as pool:
            pool.alloc(BLOCKS)
            before = fill(pool, 1)
            plan = backend.kv_copy_plan(pool, pool)
            for source_ids, target_ids in (([0, 1], [1, 2]), ([3], [3]), ([4, 5], [5, 4])):
                with pytest.raises(InvalidArgumentError, match="both source and target"):
                    plan.copy(source_ids, target_ids)
            assert (contents(pool) == before).all()

    def test_pools_and_streams_of_others_are_refused(self, backend):
        source, target = pair(backend)
        with CPUBackendProvider() as other, source, target:
            stranger = other.kv_pool(layout_of(), BLOCKS)
            for pools in ((source, stranger), (stranger, target)):
                with pytest.raises(InvalidArgumentError, match="another provider"):
                    backend.kv_copy_plan(*pools)
            ids, before = source.alloc(1), fill(target, 1)
            plan = backend.kv_copy_plan(source, target)
            for stream in (other.create_stream(), "stream", 0, object()):
                with pytest.raises(InvalidArgumentError):
                    plan.copy(ids, target.alloc(1), stream)
            assert (contents(target) == before).all()

    @pytest.mark.parametrize("junk", [None, 0, "pool", object(), KVLayout])
    def test_what_is_no_pool_is_refused(self, backend, junk):
        with backend.kv_pool(layout_of(), 1) as pool:
            for pools in ((pool, junk), (junk, pool)):
                with pytest.raises(InvalidArgumentError, match="must be a KVPool"):
                    backend.kv_copy_plan(*pools)

    @pytest.mark.parametrize(
        "change",
        [{"dtype": DType.FP16}, {"order": "HND"}, {"packing": "packed"}, {"head_dim": 32}],
        ids=lambda change: next(iter(change)),
    )
    def test_layouts_that_differ_are_refused(self, backend, change):
        layout = layout_of()
        with (
            backend.kv_pool(layout, 1) as source,
            backend.kv_pool(dataclasses.replace(layout, **change), 1) as target,
            pytest.raises(InvalidArgumentError, match="layouts of the two pools differ"),
        ):
            backend.kv_copy_plan(source, target)

    def test_alignment_may_differ(self, backend):
        source = backend.kv_pool(layout_of(), 2)
        target = backend.kv_pool(layout_of(alignment=1), 2)
        read = fill(source, 1)
        backend.kv_copy_plan(source, target).copy(source.alloc(2), target.alloc(2))
        assert (contents(target) == read).all()

    def test_copies_from_or_to_a_closed_pool_are_refused(self, backend):
        for closed in (0, 1):
            pools = pair(backend)
            ids = [pool.alloc(1) for pool in pools]
            plan = backend.kv_copy_plan(*pools)
            before = fill(pools[1 - closed], 1)
            pools[closed].close()
            with pytest.raises(UnavailableError, match="closed"):
                plan.copy(*ids)
            assert (contents(pools[1 - closed]) == before).all()
            pools[1 - closed].close()

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), None, "1", 10**400, True])
    def test_a_timeout_that_is_none_is_refused(self, backend, timeout):
        source, target = pair(backend)
        with source, target:
            transfer = backend.kv_copy_plan(source, target).copy([], [])
            with pytest.raises(InvalidArgumentError, match="timeout_s"):
                transfer.wait(timeout)
