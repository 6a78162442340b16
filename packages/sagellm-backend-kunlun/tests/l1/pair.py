"""One rank of two, in a process of its own: pair.py RANK ADDRESS. Prints ``ok`` at its end."""

from __future__ import annotations

import os
import sys

import ml_dtypes
import numpy as np

from sagellm_backend import get_provider
from sagellm_backend.errors import CommError, CommTimeoutError

FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
INTEGERS = (np.int8, np.int32, np.int64)
REDUCE = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def values(rank, shape, dtype):
    """Small integers, of which every dtype here knows the sums."""
    return (np.arange(np.prod(shape)).reshape(shape) % 7 + 3 * rank - 4).astype(dtype)


def exactly(backend, array, expected):
    found = backend.to_numpy(array)
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    assert (found == expected).all(), (found, expected)


def reductions(backend, group, rank):
    for dtype in (*FLOATS, *INTEGERS):
        ours = [values(index, (6, 5), dtype) for index in range(2)]
        for op, both in REDUCE.items():
            mine = backend.from_numpy(ours[rank])
            assert group.all_reduce(mine, op) is mine
            exactly(backend, mine, both(*ours))
            part = group.reduce_scatter(backend.from_numpy(ours[rank]), op)
            exactly(backend, part, both(*ours)[3 * rank : 3 * rank + 3])
    for dtype in FLOATS:
        mine = backend.from_numpy(np.array([1, 100], dtype) * dtype(rank + 1))
        exactly(backend, group.all_reduce(mine, "avg"), np.array([1.5, 150], dtype))


def movements(backend, group, rank):
    for dtype in (*FLOATS, *INTEGERS):
        ours = [values(index, (2, 3), dtype) for index in range(2)]
        mine = backend.from_numpy(ours[rank])
        exactly(backend, group.all_gather(mine), np.stack(ours))
        received = group.all_to_all(mine)
        exactly(backend, received, np.stack([one[rank] for one in ours]))
        for root in range(2):
            mine = backend.from_numpy(ours[rank])
            assert group.broadcast(mine, root) is mine
            exactly(backend, mine, ours[root])
        into = backend.from_numpy(np.zeros_like(ours[0]))
        if rank:
            group.recv(into, 0)
            exactly(backend, into, ours[0])
        else:
            group.send(mine := backend.from_numpy(ours[0]), 1)
            exactly(backend, mine, ours[0])
    group.barrier()


def after_work_of_a_stream(backend, group, rank):
    """What a stream has under way is done before it is sent, and results are there for the next."""
    from kunlun_sim.runtime import sleep

    stream = backend.create_stream()
    source = backend.from_numpy(np.full(1000, rank + 1, np.float32))
    target = backend.from_numpy(np.zeros(1000, np.float32))
    with stream:
        sleep(stream.native, 200)
        target[:] = source
        group.all_reduce(target)
    stream.synchronize()
    exactly(backend, target, np.full(1000, 3, np.float32))


def async_work(backend, group, rank):
    mine = backend.from_numpy(np.full(9, rank + 1, np.int32))
    reduction = group.all_reduce(mine, async_op=True)
    gathering, stacked = group.all_gather(
        backend.from_numpy(np.array([rank], np.int32)), async_op=True
    )
    gathering.wait()
    reduction.wait()
    assert reduction.done()
    exactly(backend, mine, np.full(9, 3, np.int32))
    exactly(backend, stacked, np.array([[0], [1]], np.int32))


def main(rank, address):
    with get_provider("kunlun") as backend, backend.communicator(rank, 2, address, 30.0) as group:
        for check in (reductions, movements, after_work_of_a_stream, async_work):
            check(backend, group, rank)
        mine = backend.from_numpy(np.array([2.0], np.float32))
        backend.all_reduce(mine)
        exactly(backend, mine, np.array([4.0], np.float32))
    with get_provider("kunlun") as backend:
        group = backend.communicator(rank, 2, address, 5.0)
        group.barrier()
        if rank:
            leave()  # without a word
        try:
            group.all_reduce(backend.from_numpy(np.ones(3, np.float32)))
        except (CommError, CommTimeoutError):
            leave()
        raise AssertionError("the other rank is gone, and nobody said so")


def leave():
    """End the process at once: a group of which a rank is gone cannot be closed in order."""
    print("ok", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
