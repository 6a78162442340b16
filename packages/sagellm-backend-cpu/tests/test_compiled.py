"""Kernels that Numba compiles: had once, kept, shared, and done without where they cannot be had."""

import ctypes
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sagellm_backend.cpu.compiled import cache, image, team
from sagellm_backend.cpu.compiled import kernel as kernels
from sagellm_backend.cpu.compiled.kernel import Kernel

Words = ctypes.c_int64 * 9


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sagellm-backend" / "compiled"


def product(function, x, weight, chunks=4):
    """What the kernel makes of a row and a weight of bf16."""
    outputs, inputs = weight.shape
    y = torch.full((outputs,), 7.0, dtype=weight.dtype)
    addresses = x.data_ptr(), weight.data_ptr(), 0, y.data_ptr()
    words = Words(0, *addresses, 1, inputs, outputs, -(-outputs // chunks))
    team.run(function, words, chunks)
    return y


class TestCache:
    def test_what_one_process_compiled_another_only_reads(self, home, monkeypatch):
        code = (
            "from sagellm_backend.cpu.compiled.kernel import Kernel\n"
            "assert Kernel('row_linear', 'bf16').function() is not None\n"
            "import sys; print('numba' in sys.modules, 'llvmlite' in sys.modules)"
        )
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code], check=False, capture_output=True, text=True
            )
            assert done.stdout.split() == ["False", "False"], done.stderr
        (kept,) = home.iterdir()
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert len(kept.read_bytes()) < 1 << 16
        monkeypatch.setattr(kernels, "_compile", None)
        assert Kernel("row_linear", "bf16").function() is not None

    @pytest.mark.parametrize("damage", [b"", b"short", bytes(4096)])
    def test_a_damaged_file_is_not_run(self, home, damage):
        assert cache.write("key", b"code")
        assert cache.read("key") == b"code"
        (home / "key").write_bytes(damage)
        assert cache.read("key") is None

    def test_a_file_of_another_user_is_not_run(self, home, monkeypatch):
        assert cache.write("key", b"code")
        monkeypatch.setattr(cache.os, "getuid", lambda: os.geteuid() + 1)
        assert cache.read("key") is None

    def test_two_processes_that_compile_at_once_both_get_it(self, home):
        code = (
            "from sagellm_backend.cpu.compiled.kernel import Kernel\n"
            "assert Kernel('row_linear', 'fp16').function() is not None"
        )
        both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [process.wait(120) for process in both] == [0, 0]
        assert len(list(home.iterdir())) == 1

    def test_a_place_that_takes_nothing_costs_only_the_next_process(self, tmp_path, monkeypatch):
        blocked = tmp_path / "file"
        blocked.write_text("no folder")
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
        assert not cache.write("key", b"code")
        assert cache.read("key") is None
        assert Kernel("row_linear", "bf16").function() is not None


class TestWithout:
    def logged(self, caplog):
        with caplog.at_level(logging.WARNING):
            kernel = Kernel("row_linear", "bf16")
            assert kernel.function() is None
            assert kernel.function() is None
        (record,) = caplog.records
        return record.getMessage()

    def test_numba(self, home, monkeypatch, caplog):
        def version(name):
            raise kernels.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(kernels.metadata, "version", version)
        assert "plain torch computes instead" in self.logged(caplog)

    def test_a_processor_that_was_measured(self, home, monkeypatch, caplog):
        monkeypatch.setattr(kernels.platform, "machine", lambda: "riscv64")
        assert "linux on riscv64" in self.logged(caplog)

    def test_a_compiler_that_works(self, home, monkeypatch, caplog):
        monkeypatch.setattr(kernels.sys, "executable", "/bin/false")
        assert "ended with 1" in self.logged(caplog)

    def test_leave_to_execute(self, home, monkeypatch, caplog):
        def load(code):
            raise OSError(13, "memory may not be made executable")

        monkeypatch.setattr(image, "load", load)
        assert "executable" in self.logged(caplog)


class TestImage:
    def test_code_that_calls_elsewhere_is_refused(self):
        from llvmlite import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple().create_target_machine(
            reloc="pic", codemodel="small"
        )
        text = (
            "declare void @elsewhere()\n"
            "define void @entry() {\n  call void @elsewhere()\n  ret void\n}\n"
        )
        code = target.emit_object(llvm.parse_assembly(text))
        with pytest.raises(ValueError, match="leads outside"):
            image.link(code, "entry")
        with pytest.raises(ValueError, match="leads outside|no function"):
            image.link(code, "exit")

    def test_memory_that_runs_cannot_be_written(self, code):
        function = image.load(code)
        address = ctypes.cast(function, ctypes.c_void_p).value
        lines = Path("/proc/self/maps").read_text().splitlines()
        spans = [(line.split()[0].split("-"), line.split()[1]) for line in lines]
        (rights,) = [
            rights for (low, high), rights in spans if int(low, 16) <= address < int(high, 16)
        ]
        assert rights.startswith("r-x")

    @pytest.fixture
    def code(self):
        return kernels._code("row_linear", "bf16")


class TestTeam:
    def test_torch_has_threads_to_share(self):
        assert team._parallel() is not None

    @pytest.mark.parametrize("threads", [1, 2, 5])
    @pytest.mark.parametrize("chunks", [1, 3, 64])
    def test_every_chunk_is_done_once(self, threads, chunks):
        function = Kernel("row_linear", "bf16").function()
        weight = torch.randint(-8, 8, (203, 96)).bfloat16()
        x = torch.randint(-8, 8, (96,)).bfloat16()
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y = product(function, x, weight, chunks)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(y, (weight.float() @ x.float()).bfloat16())

    def test_without_the_threads_the_caller_does_it_all(self, monkeypatch):
        monkeypatch.setattr(team, "_parallel", lambda: None)
        weight = torch.randint(-8, 8, (50, 64)).bfloat16()
        y = product(Kernel("row_linear", "bf16").function(), torch.ones(64).bfloat16(), weight)
        assert torch.equal(y, weight.float().sum(1).bfloat16())

    def test_calls_of_several_threads_at_once(self):
        kernel, wrong = Kernel("row_linear", "bf16"), []

        def work(seed):
            weight = torch.full((512, 128), float(seed)).bfloat16()
            for _ in range(50):
                y = product(kernel.function(), torch.ones(128).bfloat16(), weight)
                if not torch.equal(y, torch.full((512,), 128.0 * seed).bfloat16()):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_the_environment_is_left_as_it_was(home):
    before = dict(os.environ)
    assert Kernel("row_linear", "fp16").function() is not None
    assert dict(os.environ) == before
