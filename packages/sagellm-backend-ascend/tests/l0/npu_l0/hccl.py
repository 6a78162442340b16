"""The backend ``hccl`` of torch.distributed, with the traits of torch_npu that matter, over gloo.

Registered as torch_npu 2.13 registers its own (_init/registry/distributed.py). It moves and reduces
what HCCL does, waits as the environment said when a group was made, and knows no ``avg``.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

from npu_l0.library import CHIP, demand

MADE = []
"""What each group was made with."""

EVERYWHERE = {torch.float32, torch.float16, torch.int8, torch.int32}
WAITS = ("TORCH_HCCL_BLOCKING_WAIT", "HCCL_BLOCKING_WAIT")


class Work(dist._Work):
    """Done when its copy back is; a hanging one never is."""

    def __init__(self, group, finish, hangs=False):
        super().__init__()
        self.group, self.finish, self.hangs = group, finish, hangs

    def is_completed(self):
        return not self.hangs

    def wait(self, timeout=None):
        demand(self.group.waits, "the watchdog would have ended the process")
        demand(not self.hangs, "waited for what never ends")
        if self.finish is not None:
            self.finish()
            self.finish = None
        return True


class ProcessGroup(dist.ProcessGroup):
    """One process's end of a group."""

    hangs = False
    refuses = ""

    def __init__(self, store, rank, size, timeout, name):
        super().__init__(rank, size)
        self._name = name
        self._inner = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.waits = any(os.environ.get(name, "0") == "1" for name in WAITS)

    @property
    def group_name(self):
        return self._name

    def getBackendName(self):
        return "hccl"

    def _run(self, name, outputs, inputs, opts, *, reduced=()):
        for tensor in (*outputs, *inputs):
            demand(tensor.device.type == "simdev", f"{name} of an array on {tensor.device}")
            demand(tensor.is_contiguous(), f"{name} of an array that is not contiguous")
        for tensor in reduced:
            _check_reducible(tensor.dtype, opts.reduceOp)
        if self.refuses:
            raise RuntimeError(self.refuses)
        if self.hangs:
            return Work(self, None, hangs=True)
        host_in, host_out = [x.cpu() for x in inputs], [x.cpu() for x in outputs]
        call = getattr(self._inner, name)
        call(*((host_out, host_in) if inputs else (host_out,)), opts).wait()

        def finish():
            for tensor, values in zip(outputs, host_out, strict=True):
                tensor.copy_(values)

        return Work(self, finish)

    def allreduce(self, tensors, opts):
        return self._run("allreduce", tensors, [], opts, reduced=tensors)

    def broadcast(self, tensors, opts):
        return self._run("broadcast", tensors, [], opts)

    def all_gather_single(self, output, value, opts):
        demand(output.numel() == value.numel() * self.size(), "sizes do not fit")
        host = output.cpu()
        self._inner._allgather_base(host, value.cpu(), opts).wait()
        return Work(self, lambda: output.copy_(host))

    def reduce_scatter_single(self, output, value, opts):
        _check_reducible(value.dtype, opts.reduceOp)
        host = output.cpu()
        self._inner._reduce_scatter_base(host, value.cpu(), opts).wait()
        return Work(self, lambda: output.copy_(host))

    def all_to_all_single(self, output, value, output_sizes, input_sizes, opts):
        host = output.cpu()
        self._inner.alltoall_base(host, value.cpu(), output_sizes, input_sizes, opts).wait()
        return Work(self, lambda: output.copy_(host))

    def send(self, tensors, peer, tag):
        self._inner.send([tensors[0].cpu()], peer, tag).wait()
        return Work(self, None)

    def recv(self, tensors, peer, tag):
        host = tensors[0].cpu()
        self._inner.recv([host], peer, tag).wait()
        return Work(self, lambda: tensors[0].copy_(host))


def _check_reducible(dtype, op):
    """What HcclAllReduce documents (CANN 8.5): the 310P has no int64, and A2 no product of bf16."""
    more = set() if CHIP.version in range(200, 206) else {torch.bfloat16, torch.int64}
    demand(dtype in EVERYWHERE | more, f"Unsupported data type for HCCL: {dtype}")
    demand(op not in (dist.ReduceOp.BXOR, dist.ReduceOp.AVG), "Unhandled ReduceOp")
    demand(op != dist.ReduceOp.PRODUCT or dtype is not torch.bfloat16, "no products of bfp16")


class Options:
    """What a group is told beside its timeout: settings of HCCL by name."""

    def __init__(self):
        self.hccl_config = {}


EXTENSION = SimpleNamespace(
    _distributed_c10d=SimpleNamespace(ProcessGroupHCCL=SimpleNamespace(Options=Options))
)
"""``torch_npu._C``"""


def _create(options, pg_options):
    demand(isinstance(pg_options, Options), "options of another backend")
    demand(options.timeout.total_seconds() > 0, "no timeout")
    limit = pg_options.hccl_config["hccl_exec_timeout"]
    demand(type(limit) is int, "Value type of hccl_exec_timeout should be int.")
    demand(limit > options.timeout.total_seconds(), "the device gives up first")
    MADE.append({"timeout": options.timeout, "rank": options.group_rank, "when": time.monotonic()})
    return ProcessGroup(
        options.store, options.group_rank, options.group_size, options.timeout, options.group_id
    )


def register():
    """Make the backend known, once."""
    if "hccl" not in dist.Backend.backend_list:
        dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["simdev"])
