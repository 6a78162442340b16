"""One of two processes that talk over HCCL; prints what it found."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from ascend_sim import trace

from sagellm_backend import get_provider
from sagellm_backend.errors import CommTimeoutError, UnavailableError

RANK = int(sys.argv[1])
backend = get_provider("ascend-l1", {"device": RANK})
mine = np.arange(4, dtype=np.float32) + RANK
with backend.communicator(RANK, 2, sys.argv[2], timeout_s=60) as group:
    found = {}

    def collect(name, call):
        calls = trace.of(lambda: found.update({name: backend.to_numpy(call()).tolist()}))
        found[f"{name} calls"] = sorted({item.name for item in calls if item.name[:4] == "Hccl"})

    collect("all_reduce", lambda: group.all_reduce(backend.from_numpy(mine)))
    collect("all_gather", lambda: group.all_gather(backend.from_numpy(mine)))
    collect("reduce_scatter", lambda: group.reduce_scatter(backend.from_numpy(mine)))
    collect("broadcast", lambda: group.broadcast(backend.from_numpy(mine), root=1))
    collect("all_to_all", lambda: group.all_to_all(backend.from_numpy(mine.reshape(2, 2))))
    if RANK:
        group.send(backend.from_numpy(mine), 0)
    else:
        collect("recv", lambda: group.recv(backend.from_numpy(np.zeros(4, np.float32)), 1))
    group.barrier()


def fails(kind, call, *arguments):
    """Whether a call raises this error, and the seconds that it takes."""
    start = time.monotonic()
    try:
        call(*arguments)
    except kind:
        return True, time.monotonic() - start
    return False, time.monotonic() - start


with backend.communicator(RANK, 2, sys.argv[2] + "2", timeout_s=60) as group:
    left = backend.communicator(RANK, 2, timeout_s=1.5)
    if RANK:  # and rank 0 does not come
        array = backend.from_numpy(mine)
        found["alone"] = fails(CommTimeoutError, left.all_reduce, array)
        found["again"] = fails(UnavailableError, left.all_reduce, array)
    found["close"] = fails(Exception, left.close)
    found["after"] = backend.to_numpy(group.all_reduce(backend.from_numpy(mine))).tolist()
print(json.dumps(found))
