"""The simulated device alone, by plain Paddle: what the tests of the provider rest upon."""

from __future__ import annotations

import time

import numpy as np
import paddle
import pytest
from kunlun_sim.runtime import sleep, stream_id, traced
from processes import output_of

BUSY_MS = 200


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_paddle_finds_two_devices(device):
    assert device.get_available_custom_device() == ["kunlun_sim:0", "kunlun_sim:1"]


def test_arrays_go_there_and_back(device):
    for index in (0, 1):
        with device.device_guard(f"kunlun_sim:{index}"):
            there = paddle.to_tensor(numbers(3, 4))
            assert str(there.place) == f"Place(kunlun_sim:{index})"
            assert (there.numpy() == numbers(3, 4)).all()


def test_new_memory_is_not_zero(device):
    assert np.isnan(paddle.empty([1 << 16]).numpy()).all()


def test_the_host_cannot_reach_the_memory(device):
    here = paddle.ones([4])
    assert here.data_ptr() >> 48, "an address that processes may have"
    with pytest.raises(NotImplementedError):
        np.from_dlpack(here)


def test_paddle_computes_on_the_host_what_the_device_has_no_kernel_for(device):
    one, other = paddle.to_tensor(numbers(3, 4)), paddle.to_tensor(numbers(3, 4))
    with traced() as calls:
        found = one * other
    assert (found.numpy() == numbers(3, 4) ** 2).all()
    assert sum(call.startswith("call copy_d2h") for call in calls) == 2


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 4), (4, 2)),
        ((4,), (4,)),
        ((4,), (4, 2)),
        ((3, 4), (4,)),
        ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (5, 4, 6)),
        ((3, 0), (0, 2)),
        ((0, 4), (4, 2)),
    ],
)
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products_of_matrices_are_the_device_s_own_work(device, x, y, transposed):
    matrices = [numbers(*x), numbers(*y)]
    given = [
        paddle.to_tensor(
            np.ascontiguousarray(np.swapaxes(one, -1, -2) if turn and one.ndim > 1 else one)
        )
        for one, turn in zip(matrices, transposed, strict=True)
    ]
    with traced() as calls:
        found = paddle.matmul(*given, *map(bool, transposed))
    assert (found.numpy() == matrices[0] @ matrices[1]).all()
    assert list(found.shape) == list((matrices[0] @ matrices[1]).shape)
    assert not any("d2h" in call for call in calls)


def test_what_is_computed_on_the_host_comes_after_the_work_of_the_stream(device):
    target, source = paddle.zeros([4]), paddle.ones([4])
    with traced() as calls:
        sleep(device.current_stream(), BUSY_MS)
        target[:] = source
        found = target + 1
    assert (found.numpy() == 2).all()
    assert calls.index(done(calls, "set_value")) < calls.index(first(calls, "call copy_d2h"))


def test_strided_tensors_are_made_dense_in_the_order_of_the_stream(device):
    target, ones = paddle.zeros([3, 4]), paddle.ones([4])
    sleep(device.current_stream(), BUSY_MS)
    target[1] = ones
    assert (target.transpose([1, 0]).contiguous().numpy()[:, 1] == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8"])
@pytest.mark.parametrize(
    "write",
    [
        lambda whole, part: whole.__setitem__(slice(1, 3), part),
        lambda whole, part: whole[1:3].copy_(part, False),
        lambda whole, part: whole.index_put_((paddle.to_tensor([1, 2]),), part),
        lambda whole, part: whole.scatter_(paddle.to_tensor([1, 2]), part),
        lambda whole, part: paddle.assign(part, whole[1:3]),
        lambda whole, part: whole[1:3].fill_(7),
    ],
    ids=["setitem", "copy_", "index_put_", "scatter_", "assign", "fill_"],
)
def test_writing_in_place_is_seen_by_every_view(device, dtype, write):
    whole = paddle.to_tensor(numbers(4, 3)).astype(dtype)
    view, address = whole.view([12]), whole.data_ptr()
    write(whole, paddle.full([2, 3], 7.0).astype(dtype))
    expected = numbers(4, 3)
    expected[1:3] = 7
    assert whole.data_ptr() == address
    assert (view.astype("float32").numpy() == expected.reshape(12)).all()


def test_writing_into_columns(device):
    whole = paddle.to_tensor(numbers(3, 4))
    view = whole.view([12])
    whole[:, 1:3].copy_(paddle.zeros([3, 2]), False)
    whole[::2, 3] = paddle.ones([2])
    expected = numbers(3, 4)
    expected[:, 1:3] = 0
    expected[::2, 3] = 1
    assert (view.numpy() == expected.reshape(12)).all()


def test_strided_copies_between_host_and_device_are_refused(device):
    """Paddle runs the source's kernel on both ends: the device's here, and the host's elsewhere."""
    columns = paddle.transpose(paddle.zeros([3, 4]).cpu(), [1, 0])
    with pytest.raises(ValueError, match="given host memory"):
        columns.copy_(paddle.ones([4, 3]), True)


def test_rows_are_put_by_two_indices(device):
    whole = paddle.to_tensor(numbers(3, 4, 2))
    rows, columns = paddle.to_tensor([2, 0, -1]), paddle.to_tensor([3, 1, 0])
    whole.index_put_((rows, columns), paddle.to_tensor(-numbers(3, 2)))
    expected = numbers(3, 4, 2)
    expected[[2, 0, 2], [3, 1, 0]] = -numbers(3, 2)
    assert (whole.numpy() == expected).all()


def test_rows_and_columns_of_indices_are_broadcast(device):
    whole = paddle.to_tensor(numbers(3, 4, 2))
    rows, columns = paddle.to_tensor([[2], [0]]), paddle.to_tensor([[3, 1, 0]])
    whole.index_put_((rows, columns), paddle.to_tensor(-numbers(2, 3, 2)))
    expected = numbers(3, 4, 2)
    expected[np.array([[2], [0]]), np.array([[3, 1, 0]])] = -numbers(2, 3, 2)
    assert (whole.numpy() == expected).all()


class TestStreams:
    def test_work_of_a_stream_does_not_hold_up_the_caller(self, device):
        stream = device.Stream()
        target, source = paddle.zeros([4]), paddle.ones([4])
        started = time.perf_counter()
        with device.stream_guard(stream):
            sleep(stream, 5 * BUSY_MS)
            target[:] = source
        assert time.perf_counter() - started < 2.5 * BUSY_MS / 1000
        assert (target.numpy() == 0).all(), "another stream does not wait"
        stream.synchronize()
        assert (target.numpy() == 1).all()

    def test_an_event_is_complete_when_what_came_before_is(self, device):
        stream, event = device.Stream(), device.Event()
        sleep(stream, BUSY_MS)
        event.record(stream)
        assert not event.query()
        event.synchronize()
        assert event.query()

    def test_a_stream_waits_for_an_event_of_another(self, device):
        first_one, second, event = device.Stream(), device.Stream(), device.Event()
        target, source = paddle.zeros([4]), paddle.ones([4])
        with traced() as calls:
            with device.stream_guard(first_one):
                sleep(first_one, BUSY_MS)
                event.record(first_one)
            second.wait_event(event)
            with device.stream_guard(second):
                target[:] = source
            second.synchronize()
        assert (target.numpy() == 1).all()
        order = [call for call in calls if call.startswith("done")]
        assert order == [
            f"done sleep stream {stream_id(first_one)}",
            f"done record_event stream {stream_id(first_one)}",
            f"done wait_event stream {stream_id(second)}",
            f"done set_value stream {stream_id(second)}",
        ]

    def test_the_device_is_synchronised_with_all_of_its_streams(self, device):
        streams, event = [device.Stream() for _ in range(3)], device.Event()
        for stream in streams:
            sleep(stream, BUSY_MS)
        event.record(streams[-1])
        device.synchronize("kunlun_sim:0")
        assert event.query()

    def test_there_is_no_timing_of_events(self, device):
        with pytest.raises(AttributeError):
            device.Event().elapsed_time(device.Event())

    def test_asking_a_stream_whether_it_is_idle_waits_for_it(self, device):
        stream = device.Stream()
        sleep(stream, BUSY_MS)
        started = time.perf_counter()
        assert stream.query()
        assert time.perf_counter() - started > BUSY_MS / 2000


class TestMemory:
    def test_it_is_counted_and_given_back(self):
        told = output_of(
            "import paddle\n"
            "d = paddle.device\n"
            "d.set_device('kunlun_sim:1')\n"
            "x = paddle.empty([1 << 20], dtype='float32')\n"
            "print(d.memory_allocated('kunlun_sim:1'), d.memory_allocated('kunlun_sim:0'))\n"
            "del x\n"
            "print(d.memory_allocated('kunlun_sim:1'), d.memory_reserved('kunlun_sim:1'))\n"
            "d.empty_cache()\n"
            "print(d.memory_reserved('kunlun_sim:1'), d.max_memory_allocated('kunlun_sim:1'))\n"
        )
        assert told.split() == ["4194304", "0", "0", "4194304", "0", "4194304"]

    def test_a_full_device_is_an_error_and_works_on(self):
        told = output_of(
            "import paddle\n"
            "paddle.set_device('kunlun_sim:0')\n"
            "held = paddle.empty([12 << 20], dtype='uint8')\n"
            "try:\n"
            "    paddle.empty([8 << 20], dtype='uint8')\n"
            "except MemoryError as error:\n"
            "    print('Out of memory error on kunlun_sim:0' in str(error))\n"
            "del held\n"
            "print(int(paddle.ones([8 << 20], dtype='uint8')[-1]))\n",
            KUNLUN_SIM_MEMORY_MB="16",
        )
        assert told.split() == ["True", "1"]


def test_a_blocking_copy_between_devices_waits_for_the_source_another_does_not(device):
    """As Paddle orders them. Whoever copies without waiting waits for the source before."""
    other = paddle.CustomPlace("kunlun_sim", 1)
    source, ones = paddle.zeros([4]), paddle.ones([4])
    sleep(device.current_stream("kunlun_sim:0"), BUSY_MS)
    source[:] = ones
    early = source._copy_to(other, False)
    device.synchronize("kunlun_sim:1")
    late = source._copy_to(other, True)
    assert (early.numpy() == 0).all()
    assert (late.numpy() == 1).all()


def first(calls, beginning):
    return next(call for call in calls if call.startswith(beginning))


def done(calls, name):
    return first(calls, f"done {name} ")
