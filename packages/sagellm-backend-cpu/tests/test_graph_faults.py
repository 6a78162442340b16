"""Graphs of the CPU: what is refused, whose memory it is, and several threads."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType, KVLayout
from sagellm_backend.cpu import capturing, kv_write
from sagellm_backend.cpu.compiled import program
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError, UnavailableError
from sagellm_backend.ops.rope import rope_cache

WIDTH = 1024


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def graph_bytes(backend):
    return backend.memory_stats()["graph_bytes"]


class TestFaults:
    @pytest.fixture
    def step(self, backend):
        """Rotate, and write into a cache."""
        rope, write = (backend.get_kernel(name, dtype="fp32") for name in ("rope", "kv_write"))
        table = backend.from_numpy(rope_cache(32, 16))
        self.cache = torch.zeros(4, 16, 2, 16)

        def step(x, positions, slots):
            q, k = rope(x, x, positions, table)
            write(k, k, self.cache, self.cache.clone(), slots)
            return q

        return step

    @pytest.mark.parametrize(
        ("fault", "name"),
        [({"positions": 32}, "rope"), ({"positions": -1}, "rope"), ({"slots": 64}, "kv_write")],
    )
    def test_indices_outside_of_their_tables_end_a_replay(self, backend, step, fault, name):
        good = {
            "x": torch.randn(1, 2, 16),
            "positions": torch.tensor([3]),
            "slots": torch.tensor([5]),
        }
        graph = backend.capture(step, {key: value.clone() for key, value in good.items()})
        self.cache.zero_()
        graph.update({key: torch.tensor([value]) for key, value in fault.items()})
        for _ in range(2):
            with pytest.raises(InvalidArgumentError, match=name):
                graph.replay()
            assert not self.cache.any()
        graph.update(good)
        assert torch.equal(graph.replay(), step(**good))
        assert self.cache.any()

    def test_a_slot_outside_of_its_cache_is_refused_by_the_capture(self, backend, step):
        given = {"x": torch.randn(1, 2, 16), "positions": torch.tensor([3])}
        with pytest.raises(InvalidArgumentError, match="slots"):
            backend.capture(step, {**given, "slots": torch.tensor([64])})
        backend.capture(step, {**given, "slots": torch.tensor([63])}).replay()

    def test_writes_without_a_compiled_kernel(self, backend, step, monkeypatch):
        class Missing:
            def function(self):
                return None

        monkeypatch.setattr(kv_write, "_KERNEL", Missing())
        given = {
            "x": torch.randn(1, 2, 16),
            "positions": torch.tensor([3]),
            "slots": torch.tensor([5]),
        }
        graph = backend.capture(step, given)
        graph.update({"slots": torch.tensor([6])})
        graph.replay()
        assert self.cache[0, 6].any()
        graph.update({"slots": torch.tensor([64])})
        with pytest.raises(InvalidArgumentError, match="slots"):
            graph.replay()

    def test_ids_outside_of_a_table(self, backend):
        kernel, table = backend.get_kernel("embedding"), torch.randn(5, 4)
        ids = torch.tensor([1])
        graph = backend.capture(lambda ids: kernel(ids, table), {"ids": ids})
        ids[0] = 5
        with pytest.raises(InvalidArgumentError, match="embedding"):
            graph.replay()

    @pytest.mark.parametrize(
        "look", [lambda x: x.sum().item(), lambda x: bool((x > 0).all())], ids=["item", "bool"]
    )
    def test_what_looks_at_values_cannot_be_captured(self, backend, mlp, look):
        x = torch.randn(1, WIDTH)
        with pytest.raises(UnavailableError, match="looks at values"):
            backend.capture(look, {"x": x})
        assert capturing.recording is None
        assert torch.equal(backend.capture(mlp, {"x": x}).replay(), mlp(x))

    def test_a_capture_within_a_capture(self, backend, mlp):
        x = torch.randn(1, WIDTH)
        graph = backend.capture(mlp, {"x": x})
        for inner in (lambda x: backend.capture(mlp, {"x": x}), lambda x: graph.replay()):
            with pytest.raises(UnavailableError, match="captured"):
                backend.capture(inner, {"x": x})

    def test_without_a_player(self, backend, mlp, monkeypatch):
        class Missing:
            def function(self):
                return None

        monkeypatch.setattr(program, "_PLAYER", Missing())
        with pytest.raises(UnavailableError, match="player"):
            backend.capture(mlp, {"x": torch.randn(1, WIDTH)})

    def test_a_graph_that_does_not_fit(self, mlp):
        with CPUBackendProvider({"memory_limit": 4096}) as backend:
            with pytest.raises(OutOfMemoryError):
                backend.capture(mlp, {"x": torch.randn(1, WIDTH)})
            assert graph_bytes(backend) == 0


class TestMemory:
    def test_intermediate_results_take_over_one_anothers_memory(self, backend, mlp):
        x = torch.randn(1, WIDTH)
        graph = backend.capture(mlp, {"x": x})
        assert graph.nbytes == graph_bytes(backend) <= 4 * 4 * WIDTH * 2

    def test_what_is_returned_or_kept_stays_as_it_is(self, backend):
        kept = []

        def step(x):
            kept.append(torch.empty_like(x).copy_(x))
            return [torch.empty_like(x).fill_(number) for number in range(3)]

        x = torch.ones(16)
        graph = backend.capture(step, {"x": x})
        graph.replay()
        assert [out.tolist() for out in graph.outputs] == [[n] * 16 for n in range(3)]
        assert kept[0].tolist() == [1] * 16

    def test_weights_live_as_long_as_the_graph(self, backend):
        kernel, x = backend.get_kernel("linear"), torch.randn(1, WIDTH)
        weight = torch.randn(WIDTH, WIDTH)
        gone, expected = weakref.ref(weight), kernel(x, weight)
        holder = [weight]
        graph = backend.capture(lambda x: kernel(x, holder[0]), {"x": x})
        del weight
        holder.clear()
        gc.collect()
        assert torch.equal(graph.replay(), expected)
        graph.close()
        gc.collect()
        assert gone() is None

    def test_sinks_of_attention_live_as_long_as_the_graph(self, backend):
        kernel, q = backend.get_kernel("attention", dtype="fp32"), torch.randn(1, 4, 32)
        cache = torch.randn(2, 16, 2, 32)
        metadata = backend.attention_metadata([1], [20], [[0, 1]], 16)
        holder = [torch.randn(4)]
        gone = weakref.ref(holder[0])
        graph = backend.capture(
            lambda q: kernel(q, cache, cache, metadata, scale=0.2, sinks=holder[0]), {"q": q}
        )
        holder.clear()
        gc.collect()
        assert gone() is not None
        graph.close()
        gc.collect()
        assert gone() is None

    def test_copies_of_blocks_are_made_again_between_the_same_blocks(self, backend):
        layout = KVLayout(1, 2, 16, 16, DType.FP32)
        with backend.kv_pool(layout, 4) as pool, backend.kv_pool(layout, 4) as other:
            pool.alloc(4), other.alloc(4)
            plan = backend.kv_copy_plan(pool, other)
            sources, targets = np.array([0, 3]), np.array([2, 1])

            def step(x):
                pool.key_cache(0)[[0, 3]] = x
                plan.copy(sources, targets)

            graph = backend.capture(step, {"x": torch.tensor(1.0)})
            sources[:], targets[:] = 1 << 40, 1 << 40
            gc.collect()
            graph.update({"x": torch.tensor(7.0)})
            graph.replay()
            assert (other.key_cache(0)[[2, 1]] == 7).all()
            graph.close()

    def test_outputs_outlive_their_graph(self, backend, mlp):
        x = torch.randn(1, WIDTH)
        graph = backend.capture(mlp, {"x": x})
        out, expected = graph.replay(), mlp(x)
        graph.close()
        gc.collect()
        torch.randn(1 << 16)
        assert torch.equal(out, expected)

    def test_a_graph_that_is_dropped_gives_its_charge_back(self, backend, mlp):
        graph = backend.capture(mlp, {"x": torch.randn(1, WIDTH)})
        assert graph_bytes(backend) == graph.nbytes > 0
        del graph
        gc.collect()
        assert graph_bytes(backend) == 0


class TestThreads:
    def test_the_work_of_others_is_not_recorded(self, backend, mlp):
        x, other = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
        expected = mlp(other)

        found = []

        def step(x):
            thread = threading.Thread(target=lambda: found.append(mlp(other)))
            thread.start()
            thread.join()
            return mlp(x)

        graph = backend.capture(step, {"x": x})
        assert torch.equal(found[0], expected)
        assert len(graph._parts[0]._functions) == 16
        assert torch.equal(graph.replay(), mlp(x))

    def test_captures_wait_for_one_another(self, backend, mlp):
        xs = [torch.randn(1, WIDTH) for _ in range(6)]
        graphs = {}

        def capture(number):
            graphs[number] = backend.capture(mlp, {"x": xs[number]})

        threads = [threading.Thread(target=capture, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, x in enumerate(xs):
            assert torch.equal(graphs[number].replay(), mlp(x))

    def test_graphs_are_replayed_by_several_threads_at_once(self, backend, mlp):
        xs = [torch.randn(1, WIDTH) for _ in range(3)]
        graphs = [backend.capture(mlp, {"x": x}) for x in xs]
        expected, wrong = [mlp(x) for x in xs], []

        def replay(number):
            same = [torch.equal(graphs[number].replay(), expected[number]) for _ in range(30)]
            wrong.extend(number for one in same if not one)

        threads = [threading.Thread(target=replay, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
