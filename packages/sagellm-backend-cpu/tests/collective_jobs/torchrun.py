"""Two ranks that torchrun started."""

from __future__ import annotations

import os

import torch
from here import CPU, same

from sagellm_backend.torch_support.collectives import join


def torchrun_gives_the_group(_here):
    for turn in range(3):  # torchrun's own store serves every one of them
        with join("cpu", "gloo", CPU, timeout_s=20.0) as group:
            assert group.rank == int(os.environ["RANK"])
            assert group.world_size == 2
            total = group.all_reduce(torch.tensor([group.rank + turn]))
            same(total, torch.tensor([1 + 2 * turn]))


CHECKS = (torchrun_gives_the_group,)
