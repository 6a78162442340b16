"""Core: optional features that are small enough to be proven in a few calls, and their absence."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case
from sagellm_backend.conformance.exam import Exam
from sagellm_backend.conformance.suite.core_memory import own
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError


def refused(exam: Exam, feature: Feature, *calls: Any) -> None:
    """The feature is refused by ``require``, and by each call of its own, naming it."""
    says = (feature.value, exam.provider.name)
    exam.refuses(CapabilityError, exam.provider.require, feature, says=says)
    for call, *arguments in calls:
        error = exam.refuses(CapabilityError, call, *arguments, says=says)
        exam.check(bool(error.hint), f"{call.__name__} names no next step.")


@case("core", without=Feature.STREAM)
def no_streams(exam: Exam) -> None:
    """Without streams, making one is refused and ``synchronize`` still waits for everything.

    Kills None for a stream.
    """
    refused(exam, Feature.STREAM, (exam.provider.create_stream,))
    exam.provider.synchronize()


@case("core", without=Feature.EVENT)
def no_events(exam: Exam) -> None:
    """Without events, making one is refused. Kills None for an event."""
    refused(exam, Feature.EVENT, (exam.provider.create_event,))


@case("core", without=Feature.STREAM_QUERY)
def no_stream_query(exam: Exam) -> None:
    """Without stream queries, ``Stream.query`` is refused and does not wait instead.

    Kills a query that guesses.
    """
    refused(exam, Feature.STREAM_QUERY)
    if Feature.STREAM in exam.capability.features:
        exam.refuses(CapabilityError, exam.provider.create_stream().query)


@case("core", without=Feature.STREAM_PRIORITY)
def no_stream_priority(exam: Exam) -> None:
    """Without priorities a priority is a hint: the claim is refused, the stream is made.

    Kills an engine's stream that fails for a hint.
    """
    refused(exam, Feature.STREAM_PRIORITY)
    if Feature.STREAM in exam.capability.features:
        exam.provider.create_stream(priority=7).synchronize()


@case("core", without=Feature.EVENT_TIMING)
def no_event_timing(exam: Exam) -> None:
    """Without timing, ``elapsed_ms`` of recorded events is refused.

    Kills a time of 0, or the host's clock, where the device has none.
    """
    refused(exam, Feature.EVENT_TIMING)
    if Feature.EVENT in exam.capability.features:
        stream = exam.provider.create_stream()
        start, end = exam.provider.create_event(), exam.provider.create_event()
        stream.record_event(start)
        stream.record_event(end)
        exam.refuses(CapabilityError, end.elapsed_ms, start)


@case("core", without=Feature.PINNED_MEMORY)
def no_pinned_memory(exam: Exam) -> None:
    """Without pinned memory the claim is refused, and arrays at ``host`` work all the same.

    Kills a host location that fails where pages cannot be locked.
    """
    refused(exam, Feature.PINNED_MEMORY)
    data = exam.fill((13, 5), DType.FP32)
    array = exam.provider.from_numpy(data, "host")
    exam.equal_bits(exam.provider.to_numpy(array), data, "an array at host")


@case("core", requires=(Feature.PINNED_MEMORY,))
def pinned_memory(exam: Exam) -> None:
    """Pinned arrays keep their bits, are counted at ``host`` and given back.

    Kills pinned memory that is charged to the device, or for ever.
    """
    before = own(exam), own(exam, location="host")
    shared = before[0] == before[1]
    data = exam.fill((1000, 300), DType.FP32)
    array = exam.provider.from_numpy(data, "host")
    exam.equal_bits(exam.provider.to_numpy(array), data, "a pinned array")
    during = own(exam), own(exam, location="host")
    grown = [
        after["other_bytes"] - was["other_bytes"] for was, after in zip(before, during, strict=True)
    ]
    exam.check(grown[1] >= data.nbytes, f"{data.nbytes:,} pinned bytes count {grown[1]:,}.")
    exam.check(
        grown[0] == 0 or (shared and during[0] == during[1]),
        f"pinned memory counts {grown[0]:,} bytes on the device.",
    )
    del array
    after = own(exam, location="host")
    exam.check(after["other_bytes"] == before[1]["other_bytes"], f"pinned memory stays: {after}.")


@case("core", without=Feature.HOST_REGISTER)
def no_host_registration(exam: Exam) -> None:
    """Without registration, registering host memory is refused.

    Kills a registration that does nothing.
    """
    call = exam.provider.register_host_memory
    refused(exam, Feature.HOST_REGISTER, (call, np.zeros(4096, np.uint8)))


@case("core", requires=(Feature.HOST_REGISTER,))
def host_registration(exam: Exam) -> None:
    """Host memory can be registered, copied from, and registered again after it was left.

    What is no NumPy array is refused, an exception inside ends the registration. Kills a
    registration that is never ended, and one that moves the memory.
    """
    provider = exam.provider
    data = exam.fill((1 << 16,), DType.FP32)
    wanted, place = data.copy(), data.ctypes.data
    for _ in range(3):
        with contextlib.suppress(KeyError), provider.register_host_memory(data):
            array = provider.from_numpy(data)
            exam.equal_bits(provider.to_numpy(array), wanted, "a copy of registered memory")
            raise KeyError("left by an exception")
        exam.check(data.ctypes.data == place, "the registered memory moved.")
        exam.equal_bits(data, wanted, "the registered memory")
    for junk in (None, b"bytes", [1.0], array):
        exam.refuses(InvalidArgumentError, provider.register_host_memory, junk)


@case("core", without=Feature.COLLECTIVE)
def no_collectives(exam: Exam) -> None:
    """Without collectives, joining a group is refused; alone, the collectives are the identity.

    Kills a group of one that is given where more were asked for.
    """
    provider = exam.provider
    calls = (provider.communicator, 0, 2, "tcp://127.0.0.1:1", 0.1), (provider.communicator, 0, 1)
    refused(exam, Feature.COLLECTIVE, *calls)


@case("core")
def collectives_alone_are_the_identity(exam: Exam) -> None:
    """Before any group is joined ``all_reduce`` changes nothing, and ``all_gather`` adds an axis.

    Kills a default group that is joined in silence.
    """
    data = exam.fill((5, 3), DType.FP32)
    array = exam.provider.from_numpy(data)
    exam.provider.all_reduce(array)
    exam.equal_bits(exam.provider.to_numpy(array), data, "all_reduce of one")
    gathered = exam.provider.to_numpy(exam.provider.all_gather(array))
    exam.equal_bits(gathered, data[None], "all_gather of one")


@case("core", without=Feature.DLPACK)
def no_dlpack(exam: Exam) -> None:
    """Without DLPack, an array gives no capsule.

    Kills a capsule over memory that the host cannot read.
    """
    refused(exam, Feature.DLPACK)
    array = exam.provider.from_numpy(np.zeros(3, np.float32))
    try:
        # In the order of a consumer, who asks for the device first.
        array.__dlpack_device__()
        array.__dlpack__()
    except Exception:  # noqa: BLE001 - whatever a framework raises, it gives no capsule
        return
    exam.check(condition=False, message="an array speaks DLPack, which is not declared.")


@case("core", requires=(Feature.DLPACK,))
def dlpack(exam: Exam) -> None:
    """Arrays say on which device they lie and give a capsule; the host reads it where it can.

    Kills a capsule of other bits, and a device that is none.
    """
    data = exam.fill((7, 9), DType.FP32)
    array = exam.provider.from_numpy(data)
    kind, index = array.__dlpack_device__()
    exam.check(int(kind) > 0 and int(index) >= 0, f"the device is {(kind, index)}.")
    capsule = array.__dlpack__()
    exam.check(type(capsule).__name__ == "PyCapsule", f"a {type(capsule).__name__} came.")
    if int(kind) == 1:  # kDLCPU
        exam.equal_bits(np.array(np.from_dlpack(array)), data, "the array through DLPack")
