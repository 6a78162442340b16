"""Linear over packed weights: the right numbers, the right lifetime, and memory that comes back."""

import gc
import threading
import time

import pytest
import torch
from torch.nn import functional

from sagellm_backend import CPUBackendProvider
from sagellm_backend.cpu import few_rows
from sagellm_backend.cpu import linear as packing
from sagellm_backend.cpu.linear import RULES, SMALLEST, PackedLinear
from sagellm_backend.errors import InvalidArgumentError

DTYPES = tuple(RULES)
INPUTS, OUTPUTS = 256, 8192
# The sum is rounded to the dtype once; fp32 differs by the order of 256 products.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1.3e-1}

pytestmark = pytest.mark.skipif(
    not packing.dtypes().issuperset(DTYPES), reason="oneDNN packs not every dtype on this processor"
)


@pytest.fixture(autouse=True)
def no_matrix_kernel(monkeypatch):
    """Have packed weights serve bf16 where a kernel of ours would."""
    monkeypatch.setattr(few_rows, "MATRIX_ROWS", 0)


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def weight_of(dtype=torch.bfloat16, outputs=OUTPUTS, inputs=INPUTS):
    return torch.randn(outputs, inputs).to(dtype)


def rows(dtype=torch.bfloat16, count=16, inputs=INPUTS):
    return torch.randn(count, inputs).to(dtype)


def reserved(backend):
    return backend.memory_stats()["reserved_bytes"]


def used_twice(backend, weight, x=None):
    """The kernel, and the input, after two uses of the weight."""
    kernel = backend.get_kernel("linear")
    x = rows(weight.dtype) if x is None else x
    kernel(x, weight)
    kernel(x, weight)
    return kernel, x


def assert_right(kernel, x, weight, bias=None):
    wide = functional.linear(
        x.double(), weight.detach().double(), None if bias is None else bias.double()
    )
    scale = wide.abs().clamp(min=1)
    error = (kernel(x, weight, bias).double() - wide).abs() / scale
    assert error.max() < TOLERANCE[x.dtype]


class TestPacking:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_second_use_packs(self, backend, dtype):
        weight, x = weight_of(dtype), rows(dtype)
        kernel = backend.get_kernel("linear", dtype=dtype)
        before = reserved(backend)
        kernel(x, weight)
        assert reserved(backend) == before
        kernel(x, weight)
        assert reserved(backend) >= before + weight.nbytes
        assert_right(kernel, x, weight)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_every_layout_of_the_input_and_the_bias(self, backend, dtype, with_bias):
        weight = weight_of(dtype)
        kernel, _ = used_twice(backend, weight)
        bias = torch.randn(OUTPUTS).to(dtype) if with_bias else None
        wide = torch.randn(16, 2 * INPUTS).to(dtype)
        for x in (
            rows(dtype),
            rows(dtype).reshape(2, 8, INPUTS),
            rows(dtype).reshape(8, 2, INPUTS).transpose(0, 1),
            wide[:, ::2],
            wide[:, INPUTS:],
            torch.randn(1, INPUTS).to(dtype).expand(16, INPUTS),
            torch.randn(INPUTS, 16).to(dtype).t(),
        ):
            assert kernel(x, weight, bias).shape == (*x.shape[:-1], OUTPUTS)
            assert_right(kernel, x, weight, bias)
        scattered = torch.randn(OUTPUTS, 2).to(dtype)[:, 0]
        assert_right(kernel, rows(dtype), weight, scattered)
        vector = torch.randn(INPUTS).to(dtype)
        assert kernel(vector, weight).shape == (OUTPUTS,)
        assert kernel(rows(dtype)[:0], weight, bias).shape == (0, OUTPUTS)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_only_where_it_was_measured_to_pay(self, backend, dtype):
        rule = RULES[dtype]
        kernel, before = backend.get_kernel("linear"), reserved(backend)
        weight = weight_of(dtype)
        for count in {max(rule.rows[0] - 1, 0), rule.rows[1] + 1}:
            for _ in range(3):
                kernel(rows(dtype, count), weight)
        small = weight_of(dtype, outputs=SMALLEST // INPUTS - 1)
        for _ in range(3):
            kernel(rows(dtype), small)
        if rule.max_inputs < 1 << 20:
            wide = weight_of(dtype, inputs=rule.max_inputs + 1)
            for _ in range(3):
                kernel(rows(dtype, inputs=rule.max_inputs + 1), wide)
        assert reserved(backend) == before

    def test_a_weight_that_needs_a_gradient_gets_it(self, backend):
        weight = torch.nn.Parameter(weight_of())
        with torch.no_grad():
            kernel, x = used_twice(backend, weight)
        assert reserved(backend) >= weight.nbytes
        kernel(x, weight).float().sum().backward()
        assert weight.grad is not None
        bias = torch.zeros(OUTPUTS, dtype=weight.dtype, requires_grad=True)
        assert kernel(x, weight.detach(), bias).requires_grad

    def test_two_providers_have_copies_of_their_own(self, backend):
        weight = weight_of()
        with CPUBackendProvider() as other:
            used_twice(backend, weight)
            assert (reserved(backend) > 0, reserved(other)) == (True, 0)

    def test_misuse_of_a_packed_weight_is_named(self, backend):
        weight = weight_of()
        kernel, x = used_twice(backend, weight)
        for bad in (
            (rows(inputs=INPUTS // 2, count=32), weight),
            (rows(torch.float16), weight),
            (x, weight, torch.zeros(1, dtype=weight.dtype)),
            (x, weight, torch.zeros(1, OUTPUTS, dtype=weight.dtype)),
            (x, weight, torch.zeros(OUTPUTS)),
            (x, weight.reshape(-1)),
        ):
            with pytest.raises(InvalidArgumentError, match="linear"):
                kernel(*bad)


WRITES = {
    "in place": lambda weight: weight.mul_(2),
    "through a view": lambda weight: weight[3:5].zero_(),
    "through a row": lambda weight: weight[-1].fill_(4),
    "by copy": lambda weight: weight.copy_(torch.ones_like(weight)),
    "by foreach": lambda weight: torch._foreach_mul_([weight], 2.0),
    "in inference mode": torch.inference_mode()(lambda weight: weight.add_(1)),
    "new data": lambda weight: setattr(weight, "data", weight.data * 3),
    "merged through .data": lambda weight: weight.data.add_(1),
    "through NumPy": lambda weight: weight.view(torch.int16).numpy().fill(0x3F80),
    "fewer rows of the same memory": lambda weight: setattr(weight, "data", weight.data[:512]),
    "square, turned": lambda weight: setattr(weight, "data", weight.data[:INPUTS].t()),
    "turned": lambda weight: setattr(weight, "data", weight.data.view(INPUTS, OUTPUTS).t()),
    "resized": lambda weight: weight.resize_(512, INPUTS),
    "other memory": lambda weight: weight.set_(weight_of()),
}


class TestChanges:
    @pytest.mark.parametrize("name", WRITES)
    def test_a_write_is_seen_by_the_next_call(self, backend, name):
        weight = weight_of()
        kernel, x = used_twice(backend, weight)
        WRITES[name](weight)
        for _ in range(3):
            assert_right(kernel, x, weight)

    def test_a_write_between_all_uses(self, backend):
        weight, kernel, x = weight_of(), backend.get_kernel("linear"), rows()
        for _ in range(8):
            assert_right(kernel, x, weight)
            assert_right(kernel, x, weight)
            weight.add_(0.5)
        assert reserved(backend) <= 2 * weight.nbytes

    def test_a_write_to_the_base_of_a_view(self, backend):
        base = weight_of(outputs=2 * OUTPUTS)
        view = base[OUTPUTS:]
        kernel, x = used_twice(backend, view)
        base[OUTPUTS + 1].fill_(2)
        assert_right(kernel, x, view)

    def test_tensors_of_inference_mode_count_no_writes_and_are_not_packed(self, backend):
        with torch.inference_mode():
            weight = weight_of()
            kernel, x = used_twice(backend, weight)
            assert reserved(backend) == 0
            weight[1].fill_(2)
            assert_right(kernel, x, weight)

    def test_weights_made_before_are_packed_in_inference_mode(self, backend):
        weight = weight_of()
        with torch.inference_mode():
            kernel, x = used_twice(backend, weight)
            assert reserved(backend) >= weight.nbytes
            weight.mul_(2)
            assert_right(kernel, x, weight)

    def test_what_is_not_contiguous_is_not_packed(self, backend):
        weight = weight_of().view(INPUTS, OUTPUTS).t()
        kernel, x = used_twice(backend, weight)
        assert reserved(backend) == 0
        assert_right(kernel, x, weight)

    def test_a_write_that_spares_both_samples_is_seen_after_clear_cache(self, backend):
        weight = weight_of()
        kernel, x = used_twice(backend, weight)
        weight.data[1].fill_(9)
        backend.clear_cache()
        for _ in range(3):
            assert_right(kernel, x, weight)


class TestLifetime:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_copy_goes_with_its_weight(self, backend, dtype):
        before = backend.memory_stats()
        weight = weight_of(dtype)
        used_twice(backend, weight)
        assert reserved(backend) > before["reserved_bytes"]
        assert backend.memory_stats()["allocated_bytes"] == before["allocated_bytes"]
        del weight
        assert reserved(backend) == before["reserved_bytes"]

    def test_weights_in_a_cycle_go_when_they_are_collected(self, backend):
        layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).bfloat16()
        layer.itself = layer
        with torch.no_grad():
            used_twice(backend, layer.weight)
        assert reserved(backend) > 0
        del layer
        gc.collect()
        assert reserved(backend) == 0

    def test_views_of_one_call_leave_nothing(self, backend):
        base, kernel, x = weight_of(outputs=2 * OUTPUTS), backend.get_kernel("linear"), rows()
        packed = backend._packed
        for _ in range(50):
            kernel(x, base[:OUTPUTS])
        assert (reserved(backend), len(packed._entries)) == (0, 0)

    def test_the_copy_does_not_hold_the_weight(self, backend):
        weight = backend.from_numpy(weight_of(torch.float32).numpy())
        used_twice(backend, weight, rows(torch.float32))
        assert backend.memory_stats()["allocated_bytes"] == weight.nbytes
        del weight
        assert backend.memory_stats()["allocated_bytes"] == 0

    def test_clear_cache_gives_back_what_was_reserved(self, backend):
        weights = [weight_of() for _ in range(3)]
        for weight in weights:
            used_twice(backend, weight)
        assert reserved(backend) >= 3 * weights[0].nbytes
        backend.clear_cache()
        assert reserved(backend) == 0
        kernel, x = used_twice(backend, weights[0])
        assert reserved(backend) >= weights[0].nbytes
        assert_right(kernel, x, weights[0])

    def test_nothing_is_packed_for_a_closed_provider(self):
        backend, weight = CPUBackendProvider(), weight_of()
        kernel, x = used_twice(backend, weight)
        backend.close()
        for _ in range(3):
            assert_right(kernel, x, weight)
        assert reserved(backend) == 0

    def test_memory_that_is_short_is_left_alone(self):
        weight = weight_of()
        with CPUBackendProvider({"memory_limit": 2 * weight.nbytes}) as backend:
            held = backend.empty((weight.nbytes,), "int8")
            kernel, x = used_twice(backend, weight)
            assert reserved(backend) == held.nbytes
            assert_right(kernel, x, weight)

    def test_a_machine_that_is_short_of_memory(self, backend, monkeypatch):
        weight = weight_of()
        monkeypatch.setattr(packing.machine, "memory", lambda: (64 << 20, 16 << 20))
        used_twice(backend, weight)
        assert reserved(backend) == 0


class TestThreads:
    def test_many_threads_on_the_same_weights(self, backend):
        weights, kernel = [weight_of() for _ in range(4)], backend.get_kernel("linear")
        x = rows()
        expected = [functional.linear(x, weight).float() for weight in weights]
        failures = []

        def work(seed):
            for turn in range(40):
                at = (seed + turn) % len(weights)
                got = kernel(x, weights[at]).float()
                if not torch.allclose(got, expected[at], rtol=2e-2, atol=2e-1):
                    failures.append((seed, turn))
                if turn % 10 == seed % 10:
                    backend.clear_cache()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        weights.clear()
        backend.clear_cache()
        assert reserved(backend) == 0

    def test_a_weight_that_two_threads_notice_at_once_keeps_its_only_copy(self, backend):
        weight = weight_of()
        used_twice(backend, weight)
        backend._packed._notice(weight)
        backend.clear_cache()
        assert reserved(backend) == 0

    def test_a_copy_made_while_the_cache_is_cleared_is_not_kept(self, backend, monkeypatch):
        weight, packed = weight_of(), backend._packed
        reorder = packed._reorder

        def interrupted(tensor):
            result = reorder(tensor)
            backend.clear_cache()
            return result

        monkeypatch.setattr(packed, "_reorder", interrupted)
        kernel, x = used_twice(backend, weight)
        assert reserved(backend) == 0
        assert_right(kernel, x, weight)

    def test_a_copy_made_while_the_weight_is_written_is_not_used(self, backend, monkeypatch):
        weight, packed = weight_of(), backend._packed
        reorder = packed._reorder

        def written(tensor):
            result = reorder(tensor)
            weight.mul_(2)
            return result

        monkeypatch.setattr(packed, "_reorder", written)
        kernel, x = used_twice(backend, weight)
        monkeypatch.undo()
        assert reserved(backend) == 0
        assert_right(kernel, x, weight)

    def test_who_comes_while_another_packs_does_not_wait(self, backend):
        weight, packed = weight_of(), backend._packed
        with packed._packing:
            kernel, x = used_twice(backend, weight)
            assert_right(kernel, x, weight)
        assert reserved(backend) == 0


class TestAbsence:
    def test_without_the_operators_of_onednn_torch_computes(self, monkeypatch):
        monkeypatch.setattr(packing, "dtypes", frozenset)
        with CPUBackendProvider() as backend:
            assert backend.explain("linear", dtype="bf16").chosen == "torch"
            weight = weight_of()
            kernel, x = used_twice(backend, weight)
            assert_right(kernel, x, weight)

    def test_a_dtype_that_onednn_lacks(self, monkeypatch):
        monkeypatch.setattr(packing, "dtypes", lambda: frozenset({torch.float32}))
        with CPUBackendProvider() as backend:
            told = backend.explain("linear", dtype="fp16")
            assert told.chosen == "torch"
            assert "packed fp16" in told.candidates[0].reasons[0]
            assert backend.explain("linear", dtype="fp32").chosen == "packed"

    @pytest.mark.parametrize("missing", ["_linear_pointwise", "_nbytes"])
    def test_the_probe_asks_for_every_operator(self, monkeypatch, missing):
        found = packing._operator
        monkeypatch.setattr(
            packing, "_operator", lambda name: None if name == missing else found(name)
        )
        assert packing.dtypes.__wrapped__() == frozenset()

    def test_other_processors_are_not_guessed_at(self, monkeypatch):
        monkeypatch.setattr(packing.platform, "machine", lambda: "aarch64")
        assert packing.dtypes.__wrapped__() == frozenset()


def test_packed_linear_is_one_name_of_the_operation(backend):
    told = backend.explain("linear", dtype="bf16")
    assert [one.name for one in told.candidates] == ["packed", "torch"]
    assert isinstance(backend._packed, PackedLinear)


def test_packed_bf16_is_no_slower_than_torch(backend):
    """The measured gain is 1.4; the best of many calls on a noisy machine must show no loss."""
    weights, x = [weight_of(outputs=2048, inputs=512) for _ in range(16)], rows(inputs=512)
    kernel = backend.get_kernel("linear", dtype="bf16")
    for weight in weights:
        used_twice(backend, weight, x)
    best = {kernel: float("inf"), functional.linear: float("inf")}
    until = time.perf_counter() + 20
    for turn in range(1_000_000):
        for multiply, fastest in best.items():
            figures = [fastest]
            for weight in weights:
                began = time.perf_counter()
                multiply(x, weight)
                figures.append(time.perf_counter() - began)
            best[multiply] = min(figures)
        gain = best[functional.linear] / best[kernel]
        if turn >= 20 and (gain > 1 or time.perf_counter() > until):
            break
    assert gain > 0.95
