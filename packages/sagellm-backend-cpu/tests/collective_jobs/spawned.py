"""One rank that ``multiprocessing`` spawned: it finds its backend as an engine does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sagellm_backend import get_provider


def work(rank, world, init_method, folder):
    """Sum and gather over the default group, as Protocol v0.1 has it, and write what came."""
    with get_provider("auto") as backend:
        backend.communicator(rank, world, init_method, timeout_s=60)
        array = backend.from_numpy(np.full(3, 10.0**rank, np.float32))
        gathered = backend.to_numpy(backend.all_gather(array))
        backend.all_reduce(array, "sum")
        summed = backend.to_numpy(array)
    Path(folder, f"{rank}.txt").write_text(f"{summed.tolist()} {gathered.tolist()}")
