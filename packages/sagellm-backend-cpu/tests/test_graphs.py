"""Graphs of the CPU: what is recorded, and what a replay follows."""

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import attention, few_rows
from sagellm_backend.cpu.compiled.program import Program
from sagellm_backend.cpu.recording import Call
from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.quantization import quantize_int8

WIDTH = 1024


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def kinds(graph):
    return [type(part) for part in graph._parts]


class TestReplays:
    def test_kernels_in_a_row_are_one_program(self, backend, mlp):
        x = torch.randn(1, WIDTH)
        graph = backend.capture(mlp, {"x": x})
        assert kinds(graph) == [Program]
        for _ in range(3):
            x.copy_(torch.randn(1, WIDTH))
            assert torch.equal(graph.replay(), mlp(x))

    def test_calls_of_torch_between_them_are_made_again(self, backend, mlp):
        def step(x):
            return torch.sin(mlp(x)) + mlp(2 * x)

        x = torch.randn(2, WIDTH)
        graph = backend.capture(step, {"x": x})
        assert kinds(graph) == [Program, Call, Call, Program, Call]
        for _ in range(3):
            x.copy_(torch.randn(2, WIDTH))
            assert torch.equal(graph.replay(), step(x))

    def test_what_is_changed_in_place_is_changed_again(self, backend):
        x, total = torch.ones(4), torch.zeros(4)

        def step(x):
            total.add_(x)
            total[1:].mul_(2)
            return total[:2]

        graph = backend.capture(step, {"x": x})
        assert total.tolist() == [1, 2, 2, 2]  # a capture does the work once
        graph.replay()
        assert total.tolist() == [2, 6, 6, 6]
        assert graph.outputs.tolist() == [2, 6]

    def test_results_of_every_structure(self, backend):
        def step(x):
            return {"both": (x + 1, [x.T, x]), "none": None, "number": 3}

        x = torch.ones(2, 3)
        graph = backend.capture(step, {"x": x})
        x.fill_(5)
        found = graph.replay()
        assert found["both"][0].tolist() == [[6] * 3] * 2
        assert found["both"][1][0].data_ptr() == x.data_ptr()
        assert (found["none"], found["number"]) == (None, 3)

    def test_numbers_that_python_reads_and_chooses_by_are_those_of_the_capture(self, backend):
        factor = [2]
        x = torch.ones(3)
        graph = backend.capture(lambda x: x * factor[0], {"x": x})
        factor[0] = 7
        assert graph.replay().tolist() == [2] * 3

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_any_number_of_threads_replays(self, backend, mlp, threads):
        before, x = torch.get_num_threads(), torch.randn(3, WIDTH)
        graph, expected = backend.capture(mlp, {"x": x}), mlp(x)
        torch.set_num_threads(threads)
        try:
            for _ in range(20):
                graph.outputs.zero_()
                assert torch.equal(graph.replay(), expected)
            again = backend.capture(mlp, {"x": x})
        finally:
            torch.set_num_threads(before)
        assert torch.equal(again.replay(), expected)

    def test_gradients_are_not_recorded(self, backend):
        weight = torch.randn(4, 4, requires_grad=True)
        x = torch.randn(2, 4)
        graph = backend.capture(lambda x: (x @ weight).detach(), {"x": x})
        x.zero_()
        assert graph.replay().abs().sum() == 0

    def test_int8_weights(self, backend):
        host = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
        codes, scale = quantize_int8(host)
        weight, scales = backend.from_numpy(codes), backend.from_numpy(scale)
        kernel = backend.get_kernel("linear_w8a16", dtype="fp32")
        x = torch.randn(4, 128)
        graph = backend.capture(lambda x: kernel(x, weight, scales), {"x": x})
        for _ in range(3):
            x.copy_(torch.randn(4, 128))
            kernel(torch.randn(100, 128), weight, scales)  # memory of calls without a graph grows
            assert torch.equal(graph.replay(), kernel(x, weight, scales))

    def test_a_packed_weight_that_changes_is_seen(self, backend, monkeypatch):
        monkeypatch.setattr(few_rows, "MATRIX_ROWS", 0)
        kernel, weight = backend.get_kernel("linear"), torch.randn(512, 256).bfloat16()
        x = torch.randn(8, 256).bfloat16()
        for _ in range(2):
            kernel(x, weight)
        graph = backend.capture(lambda x: kernel(x, weight), {"x": x})
        weight.mul_(3)
        assert torch.equal(graph.replay(), torch.nn.functional.linear(x, weight))
        backend.clear_cache()
        assert torch.equal(graph.replay(), torch.nn.functional.linear(x, weight))

    def test_shapes_that_change_are_refused(self, backend):
        x = torch.tensor([1.0, 2.0, 3.0])
        graph = backend.capture(lambda x: x[x > 1], {"x": x})
        assert graph.replay().tolist() == [2, 3]
        x[1] = 0
        with pytest.raises(UnavailableError, match=r"\(1,\) in a replay, and \(2,\)"):
            graph.replay()


class TestAttention:
    """Lengths and blocks are the host's."""

    @pytest.fixture
    def pages(self, backend):
        rng = np.random.default_rng(0)
        shape = (80, 16, 2, 32)
        return {
            name: backend.from_numpy(rng.standard_normal(shape).astype(np.float32))
            for name in ("k", "v")
        }

    def step(self, backend, pages, **options):
        kernel = backend.get_kernel("attention", dtype="fp32")
        return lambda q, metadata: kernel(q, **pages, metadata=metadata, scale=0.2, **options)

    def inputs(self, backend, lengths, table, queries=1):
        rng = np.random.default_rng(len(lengths))
        q = rng.standard_normal((queries * len(lengths), 4, 32)).astype(np.float32)
        metadata = backend.attention_metadata([queries] * len(lengths), lengths, table, 16)
        return {"q": backend.from_numpy(q), "metadata": metadata}

    TABLE = np.random.default_rng(1).permutation(80).reshape(2, 40).astype(np.int32)

    def check(self, graph, step, given):
        expected = step(**given)
        graph.update(given)
        assert torch.equal(graph.replay(), expected)

    @pytest.mark.parametrize("options", [{}, {"window": 70}, {"softcap": 5.0}])
    def test_lengths_of_any_number_of_splits(self, backend, pages, options):
        step = self.step(backend, pages, **options)
        graph = backend.capture(step, self.inputs(backend, [20, 33], self.TABLE))
        assert kinds(graph) == [Program]
        for lengths in ([1, 1], [640, 2], [300, 600], [257, 256], [640, 640], [5, 17]):
            for table in (self.TABLE, self.TABLE[::-1]):
                self.check(graph, step, self.inputs(backend, lengths, table))

    def test_several_layers_and_metadata_of_two_names(self, backend, pages):
        one = self.step(backend, pages)

        def step(q, first, second):
            for _ in range(3):
                q = one(q, first) + one(q, second)
            return q

        def inputs(lengths, others):
            given = self.inputs(backend, lengths, self.TABLE)
            second = self.inputs(backend, others, self.TABLE)["metadata"]
            return {"q": given["q"], "first": given["metadata"], "second": second}

        graph = backend.capture(step, inputs([20, 33], [40, 2]))
        for lengths, others in (([7, 600], [1, 1]), ([1, 2], [640, 300])):
            self.check(graph, step, inputs(lengths, others))

    def test_prompts_have_their_lengths_for_good_and_their_blocks_not(self, backend, pages):
        step = self.step(backend, pages)
        graph = backend.capture(step, self.inputs(backend, [400, 33], self.TABLE, queries=8))
        self.check(graph, step, self.inputs(backend, [400, 33], self.TABLE[::-1], queries=8))
        with pytest.raises(InvalidArgumentError, match="lengths differ"):
            graph.update(self.inputs(backend, [400, 34], self.TABLE, queries=8))

    def test_without_a_compiled_kernel(self, backend, pages, monkeypatch):
        class Missing:
            def function(self):
                return None

        monkeypatch.setattr(attention, "KERNELS", {torch.float32: Missing()})
        step = self.step(backend, pages)
        graph = backend.capture(step, self.inputs(backend, [20, 33], self.TABLE))
        assert kinds(graph) == [Call]
        for lengths in ([1, 1], [600, 2]):
            self.check(graph, step, self.inputs(backend, lengths, self.TABLE))
