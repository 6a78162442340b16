"""kv_write in one launch: its source run on the CPU, and its calls bound to torch's."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from fake_cuda.compare_kernel import caches_of
from fake_cuda.host_kernel import build

from sagellm_backend.cuda import asked, compiled
from sagellm_backend.cuda.compiled import SOURCE, Writer
from sagellm_backend.cuda.provider import CUDAProvider
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support import device_kernels
from sagellm_backend.torch_support.misuse import MisuseError

SLOTS = [[7], [-1], [-1, 0, -1], [5, -1, 0, 11], [3, 2, 1], []]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return build(SOURCE, tmp_path_factory.mktemp("kernel"))


def module(kernel, launches=None):
    """A device module that compiles; ``launches`` notes the arguments of each call."""
    launches = [] if launches is None else launches

    def compiling(source, name):
        assert (source, name) == (SOURCE, "kv_write")
        return lambda **call: (launches.append(call), kernel(**call))[1]

    return types.SimpleNamespace(
        _compile_kernel=compiling, device=lambda device: contextlib.nullcontext()
    )


@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("packing", ["separate", "packed"])
@pytest.mark.parametrize(
    ("dtype", "dim", "size"),
    [
        (torch.bfloat16, 128, 16),
        (torch.float16, 4, 8),
        (torch.bfloat16, 6, 4),
        (torch.bfloat16, 3, 2),
        (torch.float32, 5, 4),
    ],
)
@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_it_writes_what_torch_s_kernel_writes(
    kernel, order, packing, dtype, dim, size, slots, index
):
    launches = []
    writer = Writer(module(kernel, launches))
    new = torch.randn(2, len(slots), 2, dim).to(dtype)
    given = torch.tensor(slots, dtype=index)
    keys, values, memory = caches_of(order, packing, dtype, dim)
    wanted_keys, wanted_values, wanted = caches_of(order, packing, dtype, dim)
    writer.kv_write(new[0], new[1], keys, values, given)
    device_kernels.kv_write(new[0], new[1], wanted_keys, wanted_values, given)
    assert torch.equal(memory.view(torch.uint8), wanted.view(torch.uint8))
    assert len(launches) == bool(slots)
    if launches:
        assert launches[0]["args"][9] == size
        assert launches[0]["grid"] == (len(slots), 2, 1)


def test_keys_of_a_fused_projection_are_read_by_their_strides(kernel):
    fused = torch.randn(3, 8, 16)
    key, value = fused[:, 4:6], fused[:, 6:]
    keys, values, memory = caches_of("NHD", "separate", torch.float32, 16)
    slots = torch.tensor([0, 99, 4, 99, 9, 99])[::2]
    Writer(module(kernel)).kv_write(key, value, keys, values, slots)
    flat = memory.view(2, 12, 2, 16)
    assert torch.equal(flat[0, [0, 4, 9]], key)
    assert torch.equal(flat[1, [0, 4, 9]], value)


def test_rows_that_do_not_lie_in_one_piece_go_to_torch(kernel):
    launches = []
    key = torch.randn(2, 16, 2).transpose(1, 2)
    keys, values, memory = caches_of("NHD", "separate", torch.float32, 16)
    Writer(module(kernel, launches)).kv_write(key, key, keys, values, torch.tensor([3, 8]))
    assert not launches
    assert torch.equal(memory.view(2, 12, 2, 16)[1, [3, 8]], key)


def test_misuse_is_refused_and_nothing_is_written(kernel):
    keys, values, memory = caches_of("NHD", "separate", torch.float32, 16)
    before = memory.clone()
    for key in (torch.randn(2, 2, 8), torch.randn(2, 2, 16).half()):
        with pytest.raises(MisuseError):
            Writer(module(kernel)).kv_write(key, key, keys, values, torch.tensor([3, 8]))
    assert torch.equal(memory.view(torch.uint8), before.view(torch.uint8))


class TestOffer:
    def test_it_is_compiled_once_for_each_device(self, kernel):
        made = []
        found = module(kernel)
        compiling = found._compile_kernel
        found._compile_kernel = lambda *given: made.append(given) or compiling(*given)
        writer = Writer(found)
        assert [writer.shortfalls(index) for index in (0, 0, 1)] == [[]] * 3
        assert len(made) == 2

    def test_a_torch_that_cannot_compile_is_a_reason(self):
        (reason,) = Writer(types.SimpleNamespace()).shortfalls(0)
        assert "compiles no kernels" in reason

    def test_what_the_compiler_says_is_a_reason(self, kernel):
        def fail(*_):
            raise RuntimeError("Kernel compilation failed:\nline 2")

        found = module(kernel)
        found._compile_kernel = fail
        assert Writer(found).shortfalls(0) == ["it was not compiled: Kernel compilation failed:"]

    @pytest.mark.parametrize(
        ("word", "chosen"), [("", "torch"), ("torch", "torch"), ("compiled", "compiled")]
    )
    def test_it_is_taken_where_it_is_asked_for(self, kernel, provider, monkeypatch, word, chosen):
        monkeypatch.setenv(asked.VARIABLE, word)
        found = type(provider).module
        monkeypatch.setattr(found, "_compile_kernel", lambda *_: kernel, raising=False)
        monkeypatch.setattr(found, "device", lambda device: contextlib.nullcontext(), raising=False)
        fresh = type(provider)()
        wanted = chosen if type(provider).build == "cuda" else "torch"
        assert fresh.explain("kv_write", dtype="bf16").chosen == wanted
        assert isinstance(fresh, CUDAProvider)

    @pytest.mark.parametrize(
        ("given", "found"),
        [("", set()), ("torch", set()), ("compiled, flashinfer", {"compiled", "flashinfer"})],
    )
    def test_words_stand_between_commas(self, given, found):
        assert asked.kernels({asked.VARIABLE: given}) == found

    def test_another_word_is_refused(self):
        with pytest.raises(InvalidArgumentError, match="'fast'"):
            asked.kernels({asked.VARIABLE: "compiled,fast"})


class TestTorch:
    def test_it_compiles_by_these_arguments(self):
        inspect.signature(torch.cuda._compile_kernel).bind(SOURCE, "kv_write")

    def test_its_kernels_are_called_by_these(self):
        from torch.cuda._utils import _CudaKernel

        call = inspect.signature(_CudaKernel.__call__)
        call.bind(None, grid=(1, 1, 1), block=(compiled.THREADS, 1, 1), args=[])
        source = inspect.getsource(_CudaKernel.__call__)
        assert "ctypes.c_int(arg)" in source  # what the kernel's numbers are
        assert "current_stream()" in source


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
@pytest.mark.parametrize("card", [75, 80, 90, 100, 120])
def test_nvidia_s_compiler_takes_the_source(tmp_path, card):
    file = tmp_path / "kernel.cu"
    file.write_text(SOURCE)
    command = ["nvcc", f"-arch=sm_{card}", "-cubin", "-Werror", "all-warnings"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernel.cubin"), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr


MISTAKES = [
    ("if (slot < 0) return;", ""),
    ("slot / block_size", "slot % block_size"),
    ("offset * key_cache_token", "offset * key_cache_head"),
    ("second ? value_head : key_head", "key_cache_head"),
    ("token * value_token", "token * key_head"),
    ("at < heads * words", "at < words"),
    ("if (size == 16)", "if (size >= 8)"),
    ("static_cast<const int*>(slots)[token]", "static_cast<const long long*>(slots)[token]"),
]


def outcome(source, folder):
    """How a process of its own ends that compares the source with torch's kernel; 0 is equal."""
    command = [sys.executable, "-m", "fake_cuda.compare_kernel", str(folder)]
    done = subprocess.run(
        command, input=source, text=True, check=False, cwd=Path(__file__).parent, timeout=60
    )
    return done.returncode


def test_the_source_as_it_is_compares_equal(tmp_path):
    assert outcome(SOURCE, tmp_path) == 0


@pytest.mark.parametrize(("old", "new"), MISTAKES, ids=[old for old, _ in MISTAKES])
def test_a_mistake_in_the_kernel_is_caught(tmp_path, old, new):
    assert old in SOURCE
    # It differs, or dies of a word that is not aligned or not its own.
    assert outcome(SOURCE.replace(old, new), tmp_path) in {7, -6, -11, 1}
