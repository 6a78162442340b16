"""A device that is lost while it works: whichever call finds out says so, and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import simdev
import torch
from fake_cuda import backend as fake

from sagellm_backend import DType
from sagellm_backend.errors import BackendError, KVTransferError, UnavailableError

SAID = "CUDA error: uncorrectable ECC error encountered"


def lost(*_, **__):
    raise RuntimeError(SAID)


def refuses(kind, call, *arguments):
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert SAID in caught.value.message
    assert "end it and start another" in caught.value.hint


class Stream(simdev.module.Stream):
    """A stream of the lost device."""

    synchronize = query = record_event = wait_event = lost


class Event(simdev.module.Event):
    """An event of the lost device."""

    record = query = synchronize = lost


@pytest.fixture
def later(backend, monkeypatch):
    """Loses the device: what is asked of its module fails from then on."""

    def lose(*names):
        for name in names:
            monkeypatch.setattr(backend.module, name, lost)

    return lose


def test_waiting_for_everything(backend, later):
    later("synchronize")
    refuses(UnavailableError, backend.synchronize)
    refuses(UnavailableError, backend.to_numpy, backend.empty((2,), DType.FP32))


def test_streams_and_events(backend, monkeypatch):
    monkeypatch.setattr(backend.module, "Stream", Stream)
    monkeypatch.setattr(backend.module, "Event", Event)
    stream, event = backend.create_stream(), backend.create_event()
    event.recorded = True
    for call in (stream.synchronize, stream.query, event.query, event.synchronize):
        refuses(UnavailableError, call)
    refuses(UnavailableError, stream.record_event, event)


def test_memory(backend, later):
    later("mem_get_info")
    refuses(UnavailableError, backend.memory_stats)


def test_copies_of_blocks(backend, layout, later):
    device, host = (backend.kv_pool(layout, 2, place) for place in ("device", "host"))
    device.alloc(2), host.alloc(2)
    plan = backend.kv_copy_plan(device, host)
    transfer = plan.copy([0], [1], backend.create_stream())
    transfer.wait()
    transfer._event = Event("simdev")
    with pytest.raises(KVTransferError) as caught:
        transfer.wait()
    assert "start another" in caught.value.hint
    later("current_stream")
    with pytest.raises(BackendError) as caught:
        plan.copy([0], [1])
    assert "start another" in caught.value.hint


def test_graphs(backend, monkeypatch):
    x = backend.from_numpy(np.ones((2, 2), np.float32))
    graph = backend.capture(lambda x: x + x, {"x": x})
    monkeypatch.setattr(graph._native, "replay", lost)
    refuses(UnavailableError, graph.replay)
    monkeypatch.setattr(torch.Tensor, "copy_", lost)
    refuses(UnavailableError, graph.update, {"x": x})


def test_a_new_provider(monkeypatch):
    monkeypatch.setattr(fake.Simulated.module, "get_device_capability", lost)
    refuses(UnavailableError, fake.Simulated)
