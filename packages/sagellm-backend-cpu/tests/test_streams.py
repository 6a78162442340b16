"""Streams and events of the CPU: done when they return, ordered, and refusing strangers."""

import threading
import time

import pytest

from sagellm_backend import CPUBackendProvider
from sagellm_backend.capability import Feature
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.streams import entered_stream


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


@pytest.fixture
def other():
    with CPUBackendProvider() as provider:
        yield provider


def test_a_stream_never_has_work_left(backend):
    stream = backend.create_stream()
    assert stream.query()
    assert stream.synchronize() is None
    assert backend.synchronize() is None
    assert stream.owner is backend


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_a_priority_is_kept_as_a_hint(backend, priority):
    assert backend.create_stream(priority).priority == priority


@pytest.mark.parametrize("priority", [None, "0", 1.0, True, 101, -101, float("nan"), 10**400, []])
def test_what_is_no_priority_is_refused(backend, priority):
    with pytest.raises(InvalidArgumentError, match="priority"):
        backend.create_stream(priority)


def test_an_event_is_done_before_and_after_it_is_recorded(backend):
    stream, event = backend.create_stream(), backend.create_event()
    assert (event.recorded, event.query()) == (False, True)
    stream.wait_event(event)
    event.synchronize()
    stream.record_event(event)
    assert (event.recorded, event.query()) == (True, True)
    stream.wait_event(event)
    event.synchronize()


def test_the_time_between_two_events_is_that_of_the_work(backend):
    stream = backend.create_stream()
    start, end = backend.create_event(), backend.create_event()
    began = time.perf_counter()
    stream.record_event(start)
    time.sleep(0.02)
    stream.record_event(end)
    whole = 1e3 * (time.perf_counter() - began)
    assert 20 <= end.elapsed_ms(start) <= whole
    assert end.elapsed_ms(end) == 0
    with pytest.raises(InvalidArgumentError, match="after this one"):
        start.elapsed_ms(end)


def test_a_second_recording_replaces_the_first(backend):
    stream = backend.create_stream()
    first, again = backend.create_event(), backend.create_event()
    stream.record_event(again)
    stream.record_event(first)
    stream.record_event(again)
    assert again.elapsed_ms(first) >= 0


def test_events_that_were_not_recorded_have_no_time(backend):
    stream = backend.create_stream()
    one, two = backend.create_event(), backend.create_event()
    for first, second in ((one, two), (two, one)):
        with pytest.raises(InvalidArgumentError, match="recorded"):
            first.elapsed_ms(second)
        stream.record_event(one)


def test_events_of_another_provider_are_refused(backend, other):
    stream, stranger = backend.create_stream(), other.create_event()
    for call in (stream.record_event, stream.wait_event):
        with pytest.raises(InvalidArgumentError, match="another provider"):
            call(stranger)
    assert not stranger.recorded
    own = backend.create_event()
    stream.record_event(own)
    with pytest.raises(InvalidArgumentError, match="different providers"):
        own.elapsed_ms(stranger)


@pytest.mark.parametrize("junk", [None, 0, "event", object(), [], float("nan")])
def test_what_is_no_event_is_refused(backend, junk):
    stream, event = backend.create_stream(), backend.create_event()
    stream.record_event(event)
    for call in (stream.record_event, stream.wait_event, event.elapsed_ms):
        with pytest.raises(InvalidArgumentError, match="must be a Event"):
            call(junk)


def test_streams_are_entered_innermost_last(backend, other):
    outer, inner, foreign = (
        backend.create_stream(),
        backend.create_stream(),
        other.create_stream(),
    )
    assert entered_stream(backend) is None
    with outer as entered:
        assert entered is outer
        with inner, foreign:
            assert entered_stream(backend) is inner
            assert entered_stream(other) is foreign
        assert entered_stream(backend) is outer
        assert entered_stream(other) is None
    assert entered_stream(backend) is None


def test_a_failure_inside_leaves_the_stream(backend):
    with pytest.raises(ZeroDivisionError), backend.create_stream():
        raise ZeroDivisionError
    assert entered_stream(backend) is None


def test_a_stream_is_entered_in_one_thread_only(backend):
    seen = []
    with backend.create_stream():
        thread = threading.Thread(target=lambda: seen.append(entered_stream(backend)))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_closed_provider_makes_no_streams_and_its_events_go_on():
    backend = CPUBackendProvider()
    stream, event = backend.create_stream(), backend.create_event()
    backend.close()
    for make in (backend.create_stream, backend.create_event):
        with pytest.raises(UnavailableError, match="closed"):
            make()
    stream.record_event(event)
    assert event.query()


def test_features_that_the_cpu_lacks_are_refused_by_name(backend):
    absent = set(Feature) - backend.capability().features
    assert Feature.KV_PEER_COPY in absent
    for feature in absent:
        with pytest.raises(CapabilityError, match=f"'{feature.value}' is not offered") as caught:
            backend.require(feature)
        assert (caught.value.feature, caught.value.provider) == (feature.value, "cpu")
