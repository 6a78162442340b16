"""Graphs of the simulated device: calls of operators, recorded and called again.

As on CUDA, what is captured does no work until it is replayed, and what would wait for the device
cannot be captured. A replay calls every operator again on the current stream.

Graphs of one pool may use the same memory: a replay overwrites what the others of its pool have
made, all of it, where CUDA would only where it lies in the same place.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_numbers = itertools.count(1)
_graphs: weakref.WeakSet[CUDAGraph] = weakref.WeakSet()
_WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "item")


class CUDAGraph:
    """Recorded calls, and the memory of what they make."""

    def __init__(self) -> None:
        self._pool = (0, next(_numbers))
        self._recorder: _Recorder | None = None
        self._recording = ExitStack()
        _graphs.add(self)

    def share(self, pool: tuple[int, int]) -> None:
        """Use the memory of a pool, from the next capture on."""
        self._pool = pool

    def pool(self) -> tuple[int, int]:
        """The name of the memory that the graph keeps."""
        return self._pool

    def capture_begin(self) -> None:
        """Record this thread's calls from now on."""
        self._recorder = _Recorder()
        self._recording.enter_context(self._recorder)

    def capture_end(self) -> None:
        """Stop recording, and undo what the calls did."""
        assert self._recorder is not None
        self._recording.close()
        self._recorder.undo()

    def replay(self) -> None:
        """Call what was recorded, in its order; results go where the first ones lie."""
        if self._recorder is None:
            raise RuntimeError("replay of a graph that was not captured")
        for other in list(_graphs):
            if other is not self and other.pool() == self._pool:
                other.poison()
        for func, args, kwargs, result in self._recorder.calls:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, torch.Tensor) and _place(old) != _place(new):
                    old.copy_(new)

    def reset(self) -> None:
        """Forget the calls and give their memory back."""
        self._recorder = None

    def poison(self) -> None:
        """Overwrite the memory of everything that the calls made."""
        if self._recorder is not None:
            self._recorder.poison()

    def nbytes(self) -> int:
        """The memory of everything that the calls made."""
        made = self._recorder.made if self._recorder else {}
        return sum(storage.nbytes() for storage in made.values())


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: dict[int, torch.UntypedStorage] = {}
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        _refuse_waiting(func, given, args, kwargs)
        for argument, value in zip(_schema(func).arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(value)
        result = func(*args, **kwargs)
        known = {_place(tensor) for tensor in given}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _place(tensor) not in known:
                self.made.setdefault(_place(tensor), tensor.untyped_storage())
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        """Give overwritten arrays their contents back, and poison what was made."""
        for tensor, before in self._before.values():
            tensor.copy_(before)
        self.poison()

    def poison(self) -> None:
        """Overwrite what was made."""
        for storage in self.made.values():
            if storage.device.type != "cpu":
                _bytes(storage).fill_(0xFF)

    def _keep(self, value: Any) -> None:
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor) and _place(tensor) not in self.made:
                whole = _bytes(tensor.untyped_storage())
                self._before.setdefault(_place(tensor), (whole, whole.clone()))


@contextmanager
def graph(
    captured: CUDAGraph,
    pool: Any = None,
    stream: Any = None,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    """Capture the work of the block into a graph, on ``stream``."""
    if capture_error_mode not in {"global", "thread_local", "relaxed"}:
        raise RuntimeError(f"simdev has no mode {capture_error_mode}")
    if stream is None or stream.stream_id == 0:
        raise RuntimeError("a graph is captured on a stream that is not the default one")
    torch.accelerator.synchronize(stream.device)
    with torch.get_device_module("simdev").stream(stream):
        if pool is not None:
            captured.share(pool)
        captured.capture_begin()
        try:
            yield
        finally:
            captured.capture_end()


def graph_pool_handle() -> tuple[int, int]:
    """The name of a new pool, for graphs that share it."""
    return 0, next(_numbers)


def memory_snapshot() -> list[dict[str, Any]]:
    """The memory that graphs keep, by their pools."""
    return [
        {"segment_pool_id": graph.pool(), "total_size": graph.nbytes()} for graph in list(_graphs)
    ]


def _place(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - which storage, even without memory


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, 0, (storage.nbytes(),), (1,))


def _schema(func: Any) -> Any:
    return func._schema  # noqa: SLF001 - the documented way in a dispatch mode


def _refuse_waiting(func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> None:
    name = _schema(func).name.partition("::")[2]
    masks = [tensor for tensor in given if tensor.dtype in {torch.bool, torch.uint8}]
    by_mask = name in {"index", "index_put", "index_put_", "_index_put_impl_"} and any(
        mask is index for mask in masks for index in args[1] if index is not None
    )
    crossing = name in {"_to_copy", "copy_", "_copy_from"} and _crosses(given, kwargs)
    if name in _WAITING or by_mask or crossing:
        raise RuntimeError(f"operation not permitted when stream is capturing: {func}")


def _crosses(given: list[torch.Tensor], kwargs: Any) -> bool:
    """Whether a copy goes between pageable memory and a device."""
    places = [(tensor.device.type, tensor) for tensor in given]
    wanted = kwargs.get("device")
    kinds = {kind for kind, _ in places} | ({wanted.type} if wanted is not None else set())
    pageable = [tensor for kind, tensor in places if kind == "cpu" and tensor.dim()]
    to_host = wanted is not None and wanted.type == "cpu"
    return len(kinds) > 1 and (to_host or any(not tensor.is_pinned() for tensor in pageable))
