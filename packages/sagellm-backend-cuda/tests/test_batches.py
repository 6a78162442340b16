"""Batches of copies: on a driver made up in Python, and by the real bindings on one made up in C."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_cuda.bindings import CUresult, Driver

from sagellm_backend.cuda import batches
from sagellm_backend.cuda.batches import DriverBatches

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)


def has_bindings():
    try:
        return importlib.util.find_spec("cuda.bindings.driver") is not None
    except ModuleNotFoundError:
        return False


def shuffled(count, size):
    """(source, target, arguments of a copy that turns the order of the blocks round)."""
    source = RNG.integers(0, 256, (count, size), np.uint8)
    target = np.zeros_like(source)
    froms = source.ctypes.data + np.arange(count) * size
    return source, target, (target.ctypes.data + np.arange(count)[::-1] * size, froms)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 4096), (100, 33)])
def test_every_copy_goes_where_it_belongs(count, size):
    driver = Driver()
    source, target, addresses = shuffled(count, size)
    DriverBatches(driver).copy(*addresses, np.full(count, size), 7)
    assert (target[::-1] == source).all()
    assert driver.calls == [(count, 7)]


def test_an_error_has_the_driver_s_name():
    driver = Driver()
    driver.result = CUresult.CUDA_ERROR_NOT_SUPPORTED
    _, target, addresses = shuffled(3, 8)
    with pytest.raises(RuntimeError, match="of 3 copies: CUDA_ERROR_NOT_SUPPORTED"):
        DriverBatches(driver).copy(*addresses, np.full(3, 8), 7)
    assert not target.any()


def test_the_legacy_stream_is_refused_by_the_driver():
    _, _, addresses = shuffled(2, 8)
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        DriverBatches(Driver()).copy(*addresses, np.full(2, 8), 0)


class TestFind:
    @pytest.fixture
    def bindings(self, monkeypatch):
        def offer(module):
            def load(name):
                if isinstance(module, Exception):
                    raise module
                return module

            monkeypatch.setattr(batches.importlib, "import_module", load)

        return offer

    def test_without_bindings_there_are_none(self, bindings):
        bindings(ImportError("cuda"))
        assert batches.find() is None

    @pytest.mark.parametrize(
        ("version", "of_bindings", "found"),
        [
            (13000, 13000, True),
            (13010, 13050, True),
            (12080, 12090, True),
            (12060, 12090, False),
            (12090, 13000, False),  # whose call is another
            (13000, 12080, True),
        ],
    )
    def test_the_driver_must_have_the_call(
        self, bindings, monkeypatch, version, of_bindings, found
    ):
        driver = Driver(version=version)
        driver.CUDA_VERSION = of_bindings
        bindings(driver)
        assert (batches.find() is not None) is found

    def test_bindings_before_12_8_have_none(self, bindings):
        bindings(object())
        assert batches.find() is None

    def test_a_driver_that_cannot_be_loaded_has_none(self, bindings, monkeypatch):
        def fail():
            raise RuntimeError('"cuda" is an NVIDIA driver library')

        driver = Driver()
        driver.cuDriverGetVersion = fail
        bindings(driver)
        assert batches.find() is None


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed"
    folder = tmp_path_factory.mktemp("driver")
    made = folder / "libcuda.so.1"
    source = HERE / "fake_cuda" / "libcuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    return folder


@pytest.mark.skipif(not has_bindings(), reason="cuda-bindings are not installed")
class TestRealBindings:
    def run(self, library, source, **environ):
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "LD_LIBRARY_PATH": str(library), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout.splitlines()

    SOURCE = """
import json
import numpy as np
from sagellm_backend.cuda import batches
found = batches.find()
source = np.arange(60, dtype=np.uint8).reshape(3, 20)
target = np.zeros((3, 20), np.uint8)
froms = source.ctypes.data + np.arange(3) * 20
to = target.ctypes.data + np.array([2, 0, 1]) * 20
try:
    found.copy(to, froms, np.array([20, 20, 7]), 0x1234)
except Exception as error:
    print(type(error).__name__, error)
print(json.dumps(target.tolist()))
"""

    def test_the_copies_are_done(self, library):
        *_, said, result = self.run(library, self.SOURCE)
        assert said == "batch count=3 kinds=1 first=0 order=1 stream=0x1234"
        rows = np.arange(60).reshape(3, 20)
        rows[2, 7:] = 0
        assert json.loads(result) == rows[[1, 2, 0]].tolist()

    @pytest.mark.parametrize(("code", "name"), [(1, "INVALID_VALUE"), (700, "ILLEGAL_ADDRESS")])
    def test_an_error_is_named(self, library, code, name):
        *_, said, result = self.run(library, self.SOURCE, FAKE_CUDA_FAILS=str(code))
        assert said.startswith("RuntimeError cuMemcpyBatchAsync of 3 copies: CUDA_ERROR_" + name)
        assert not np.array(json.loads(result)).any()

    def test_a_driver_that_is_too_old_has_none(self, library):
        source = "from sagellm_backend.cuda import batches; print(batches.find())"
        assert self.run(library, source, FAKE_CUDA_VERSION="12060") == ["None"]

    def test_without_a_driver_there_are_none(self, tmp_path):
        source = "from sagellm_backend.cuda import batches; print(batches.find())"
        assert self.run(tmp_path, source) == ["None"]

    def test_the_bindings_made_up_in_python_have_their_signature(self):
        from cuda.bindings import driver

        ours, theirs = Driver().cuMemcpyBatchAsync, driver.cuMemcpyBatchAsync
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )
        order = driver.CUmemcpySrcAccessOrder
        ours = Driver.CUmemcpySrcAccessOrder
        assert all(int(getattr(order, one.name)) == one for one in ours)
