"""flashinfer's wrappers of paged attention, planned once for a batch step and used in every layer."""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.torch_support import memory

KEY = "cuda.flashinfer"
"""Where a metadata's ``native`` keeps its plans."""

WORKSPACE = 128 << 20
"""Bytes that flashinfer recommends for what a step's kernels keep between them."""


class Form(NamedTuple):
    """What a plan is made for, besides the lengths and blocks of its step."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    scale: float
    causal: bool
    window: int | None
    softcap: float | None


class Kind(NamedTuple):
    """What a wrapper is for good. Those of one stream share a workspace, as their work has an order."""

    device: torch.device
    stream: int
    decode: bool
    tensor_cores: bool


class _Planned:
    """Keeps a wrapper from being planned again while a step may run it."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper


class Plans:
    """The plans of one provider. Thread-safe.

    ``library`` is the module flashinfer, ``module`` the device module, ``workspace(device)`` gives
    :data:`WORKSPACE` bytes of zeros. A plan lives as long as its metadata; its wrapper, with 16 MiB
    of its own, is then used for another step.
    """

    def __init__(
        self, library: Any, module: Any, workspace: Callable[[torch.device], Tensor]
    ) -> None:
        self._library, self._module = library, module
        self._make_workspace = workspace
        self._workspaces: dict[tuple[torch.device, int], Tensor] = {}
        self._free: defaultdict[Kind, deque[tuple[Any, Any]]] = defaultdict(deque)

    def of(self, metadata: AttentionMetadata, form: Form, device: torch.device) -> Any:
        """The wrapper that is planned for a paged step, on the current stream of ``device``."""
        stream = self._module.current_stream(device)
        decode = metadata.mode == "paged_decode"
        # Without tensor cores there are kernels for some groups only; the others take any.
        grouped = form.heads // form.kv_heads >= 4
        kind = Kind(device, stream.stream_id, decode, tensor_cores=grouped)
        held = metadata.native.setdefault(KEY, {})
        planned = held.get((kind, form))
        if planned is None:
            planned = held[kind, form] = self._plan(metadata, kind, form, stream)
        return planned.wrapper

    def _plan(self, metadata: AttentionMetadata, kind: Kind, form: Form, stream: Any) -> _Planned:
        wrapper = self._wrapper(kind)
        step = _Step.of(metadata)
        indices = memory.to_device(step.indices, kind.device)
        paged = (step.indptr, indices, step.last_page_len)
        shape = (form.heads, form.kv_heads, form.head_dim, metadata.block_size)
        options = {
            "sm_scale": form.scale,
            "window_left": -1 if form.window is None else form.window - 1,
            "logits_soft_cap": form.softcap,
            "q_data_type": form.dtype,
            "kv_data_type": form.dtype,
            "seq_lens": step.lengths,
        }
        if kind.decode:
            wrapper.plan(*paged, *shape, **options)
        else:
            wrapper.plan(step.cu_query, *paged, *shape, causal=form.causal, **options)
        # A plan is copied to the device from host memory that the next plan of the wrapper rewrites.
        copied = self._module.Event()
        copied.record(stream)
        planned = _Planned(wrapper)
        free = self._free[kind]
        weakref.finalize(planned, free.append, (wrapper, copied)).atexit = False
        return planned

    def _wrapper(self, kind: Kind) -> Any:
        try:
            wrapper, copied = self._free[kind].popleft()
        except IndexError:
            return self._make(kind)
        copied.synchronize()
        return wrapper

    def _make(self, kind: Kind) -> Any:
        place = kind.device, kind.stream
        workspace = self._workspaces.get(place)
        if workspace is None:
            workspace = self._workspaces.setdefault(place, self._make_workspace(kind.device))
        if not kind.decode:
            wrapper = self._library.BatchPrefillWithPagedKVCacheWrapper
            return wrapper(workspace, kv_layout="NHD", backend="fa2")
        wrapper = self._library.BatchDecodeWithPagedKVCacheWrapper
        return wrapper(
            workspace, kv_layout="NHD", use_tensor_cores=kind.tensor_cores, backend="fa2"
        )


class _Step(NamedTuple):
    """A step in flashinfer's words: int32 on the host, pinned where it can be."""

    cu_query: Tensor
    indptr: Tensor
    indices: Tensor
    last_page_len: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, metadata: AttentionMetadata) -> _Step:
        table, size = metadata.block_table, metadata.block_size
        assert table is not None
        assert size is not None
        pages = -(-metadata.kv_lens // size)
        used = np.arange(table.shape[1]) < pages[:, None]
        arrays = (
            metadata.cu_query,
            np.concatenate(([0], np.cumsum(pages))),
            table[used],
            metadata.kv_lens - (pages - 1) * size,
            metadata.kv_lens,
        )
        return cls(*(_host(array) for array in arrays))


def _host(array: np.ndarray[Any, Any]) -> Tensor:
    tensor = torch.from_numpy(array.astype(np.int32))
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor
