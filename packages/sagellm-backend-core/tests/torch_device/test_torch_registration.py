"""Registered host memory: by the user, and for pools that torch would round up."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
import simdev
import torch

from sagellm_backend import DType
from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import all_cases
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError, UnavailableError

MODULE = simdev.module
MIB = 1 << 20


class Noted(MODULE.Registrar):
    """Keeps the ranges that are registered."""

    def __init__(self):
        self.ranges = {}
        self.fault = None

    def register(self, address, nbytes):
        if self.fault:
            raise self.fault
        super().register(address, nbytes)
        self.ranges[address] = nbytes

    def unregister(self, address):
        super().unregister(address)
        del self.ranges[address]


@pytest.fixture
def registrar():
    return Noted()


@pytest.fixture
def backend(make, registrar):
    return make(registrar=registrar)


def test_the_cases_of_the_suite_pass(make, registrar):
    def registering(config=None):
        return make(config, registrar=registrar)

    capability = registering().capability()
    assert Feature.HOST_REGISTER in capability.features
    wanted = {"core.host_registration", "core.pinned_memory"}
    cases = [case for case in all_cases(capability)[0] if case.id in wanted]
    assert {case.id for case in cases} == wanted
    for case in cases:
        exam = Exam(case, capability, registering)
        try:
            case.function(exam)
        finally:
            exam.close()
    assert not registrar.ranges


@pytest.mark.parametrize("nbytes", [MIB + 1, 5 * MIB, 3 * MIB + 4096])
def test_large_host_memory_takes_its_pages_and_no_more(backend, registrar, nbytes):
    array = backend.empty((nbytes,), DType.INT8, "host")
    assert array.is_pinned()
    assert list(registrar.ranges.values()) == [nbytes]
    assert backend.memory_stats("host")["other_bytes"] == nbytes
    view = array[5:]
    del array
    gc.collect()
    assert registrar.ranges
    del view
    gc.collect()
    assert not registrar.ranges
    assert backend.memory_stats("host")["other_bytes"] == 0


@pytest.mark.parametrize("nbytes", [1, 4096, MIB - 1, MIB, 4 * MIB])
def test_small_memory_and_powers_of_two_are_torch_s(backend, registrar, nbytes):
    array = backend.empty((nbytes,), DType.INT8, "host")
    assert array.is_pinned()
    assert not registrar.ranges


@pytest.mark.parametrize("alignment", [64, mmap.PAGESIZE, 1 << 16, 2 * MIB])
def test_it_starts_at_the_alignment(backend, registrar, alignment):
    memory = backend._registrations.allocate(MIB + 64, alignment)
    assert memory.data_ptr() % alignment == 0
    assert memory.shape == (MIB + 64,)
    spare = sum(registrar.ranges.values()) - memory.numel()
    assert spare == (alignment if alignment > mmap.PAGESIZE else 0)


def test_a_copy_under_way_ends_before_its_memory_goes(backend, registrar):
    target = backend.empty((MIB + 1,), DType.INT8, "host")
    source = backend.empty((MIB + 1,), DType.INT8)
    source.fill_(3)
    backend.synchronize()
    stream = MODULE.Stream(device=0)
    with MODULE.stream(stream):
        MODULE.sleep(200)
        target.copy_(source, non_blocking=True)
    assert not stream.query()
    unregister, seen = registrar.unregister, []
    registrar.unregister = lambda address: (seen.append(stream.query()), unregister(address))
    backend._registrations._remove(target.data_ptr())
    assert seen == [True]
    assert target.sum() == 3 * (MIB + 1)
    backend._registrations._add(target.data_ptr(), MIB + 1)
    registrar.unregister = unregister


def test_copies_from_registered_memory_return_before_they_are_done(backend):
    data = np.arange(1 << 16, dtype=np.float32)
    target = backend.empty(data.shape, DType.FP32)
    backend.synchronize()
    with backend.register_host_memory(data):
        stream = MODULE.Stream(device=0)
        with MODULE.stream(stream):
            MODULE.sleep(200)
            target.copy_(torch.from_numpy(data), non_blocking=True)
        assert not stream.query()
    assert stream.query()
    assert backend.to_numpy(target).tolist() == data.tolist()


class TestRefusals:
    def test_pages_that_are_registered_already(self, backend, registrar):
        data = np.zeros(1 << 16, np.uint8)
        with backend.register_host_memory(data):
            for part in (data, data[:10], data[-1:]):
                with (
                    pytest.raises(InvalidArgumentError, match="registered already"),
                    backend.register_host_memory(part),
                ):
                    pass
            assert len(registrar.ranges) == 1
        assert not registrar.ranges

    def test_arrays_with_holes(self, backend):
        with (
            pytest.raises(InvalidArgumentError, match="contiguous"),
            backend.register_host_memory(np.zeros((8, 8))[:, ::2]),
        ):
            pass

    def test_nothing_is_registered_for_nothing(self, backend, registrar):
        with backend.register_host_memory(np.zeros(0)):
            assert not registrar.ranges

    @pytest.mark.parametrize(
        ("said", "kind"),
        [("CUDA error: out of memory", OutOfMemoryError), ("not permitted", UnavailableError)],
    )
    def test_what_the_driver_refuses(self, backend, registrar, said, kind):
        registrar.fault = RuntimeError(said)
        with pytest.raises(kind), backend.register_host_memory(np.zeros(4096)):
            pass
        with pytest.raises(kind):
            backend.empty((MIB + 1,), DType.INT8, "host")
        assert backend.memory_stats("host")["other_bytes"] == 0
        registrar.fault = None
        assert backend.empty((MIB + 1,), DType.INT8, "host").is_pinned()


def test_what_the_host_does_not_have_is_out_of_memory(backend):
    with pytest.raises(OutOfMemoryError) as caught:
        backend._registrations.allocate(1 << 60, 64)
    assert caught.value.numbers["requested"] == 1 << 60


def test_without_a_registrar_torch_pins_everything(make):
    assert make().empty((MIB + 1,), DType.INT8, "host").is_pinned()
    assert Feature.HOST_REGISTER not in make()._features()
