"""KV pools that other processes of the machine open: CUDA's IPC, as torch shares storages by it.

A handle says what the pool is, whose card it is on and how its memory is opened, behind a digest of
all that. CUDA itself does not tell whether the pool is still there, since torch keeps its memory:
the exporting process therefore holds the lock of a file for as long as the pool is open.

Never run on a card; in tests torch's shared host memory stands for CUDA's.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sagellm_backend.errors import InvalidArgumentError, UnavailableError
from sagellm_backend.kv import BlockIds, KVLayout
from sagellm_backend.torch_support.errors import check
from sagellm_backend.torch_support.kv import TorchKVPool

_DIGEST_BYTES = 16


class Export(NamedTuple):
    """What a handle holds."""

    layout: KVLayout
    num_blocks: int
    card: str
    """The UUID of the card, whose index differs where processes see other devices."""
    process: int
    lock: str
    """The file whose lock the exporting process holds."""
    start: int
    """Where the pool begins in its storage, in bytes."""
    shared: tuple[Any, ...]
    """What :func:`share` gave."""

    def seal(self) -> bytes:
        """The handle."""
        fields = self._replace(
            layout=self.layout.to_json(),  # type: ignore[arg-type] # its place in JSON
            shared=tuple(_worded(item) for item in self.shared),
        )
        text = json.dumps(fields).encode()
        return _digest(text) + text

    @classmethod
    def unseal(cls, handle: bytes) -> Export:
        """What the handle holds. Raises :class:`InvalidArgumentError` unless it is whole."""
        digest, text = handle[:_DIGEST_BYTES], handle[_DIGEST_BYTES:]
        try:
            if digest != _digest(text):
                raise ValueError("its digest is another")
            layout, blocks, card, process, lock, start, shared = json.loads(text)
            found = KVLayout.from_json(layout)
            return cls(found, blocks, card, process, lock, start, tuple(map(_unworded, shared)))
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"These {len(handle):,} bytes are no handle of a pool, or not the whole of one: "
                f"{error}."
            ) from error


class BorrowedKVPool(TorchKVPool):
    """A pool over the memory of another process, which counts its blocks."""

    def alloc(self, count: int) -> BlockIds:
        """Refused: blocks are shared out by the process that made the pool."""
        raise self._refusal()

    def retain(self, ids: Any) -> None:
        """Refused, as :meth:`alloc`."""
        raise self._refusal()

    def free(self, ids: Any) -> int:
        """Refused, as :meth:`alloc`."""
        raise self._refusal()

    def _close(self) -> None:
        self.owner.synchronize()  # type: ignore[attr-defined] # its work may use the memory
        super()._close()

    def _refusal(self) -> UnavailableError:
        self._require_open()
        return UnavailableError(
            "The blocks of this pool are counted by the process that exported it.",
            hint="Let that process allocate and free them, and send their ids.",
        )


class Exports:
    """The handles of a provider's pools, and the pools behind those of others. Thread-safe."""

    def __init__(self, owner: Any, module: Any) -> None:
        self._owner, self._module = owner, module
        self._lock = threading.Lock()
        self._leases: weakref.WeakKeyDictionary[TorchKVPool, str] = weakref.WeakKeyDictionary()
        self._opened: weakref.WeakValueDictionary[str, torch.UntypedStorage] = (
            weakref.WeakValueDictionary()
        )

    def handle_of(self, pool: TorchKVPool) -> bytes:
        """A handle of an open pool on a device."""
        pages = pool.pages
        with check("export of a KV pool", pool.device):
            shared = share(pages.untyped_storage())
            card = self._card(torch.device(pool.device).index)
        with self._lock:
            lock = self._leases.get(pool)
            if lock is None:
                lock = self._leases[pool] = _lease(pages)
        start = int(pages.storage_offset()) * pages.itemsize
        found = Export(pool.layout, pool.num_blocks, card, os.getpid(), lock, start, shared)
        return found.seal()

    def open(self, handle: bytes) -> BorrowedKVPool:
        """The pool behind a handle of another process."""
        found = Export.unseal(handle)
        if found.process == os.getpid():
            raise InvalidArgumentError(
                "This handle is of this process, which has the pool already.",
                hint="Open it in another process.",
            )
        device = self._device_of(found.card)
        require_lease(found.lock)
        with self._lock, check("opening of a KV pool", str(device)):
            # A second opening by CUDA would be counted, and closed, for itself.
            storage = self._opened.get(found.lock)
            if storage is None:
                storage = self._opened[found.lock] = open_shared(device, found.shared)
        memory = memory_of(storage, found.start, found.layout.nbytes(found.num_blocks))
        return BorrowedKVPool(
            self._owner, found.layout, found.num_blocks, "device", str(device), memory
        )

    def _card(self, index: int) -> str:
        return str(self._module.get_device_properties(index).uuid)

    def _device_of(self, card: str) -> torch.device:
        for index in range(int(self._module.device_count())):
            if self._card(index) == card:
                return torch.device(self._owner.device_type, index)
        raise UnavailableError(
            f"The pool is on card {card}, which this process does not see.",
            hint="Give this process the card: CUDA_VISIBLE_DEVICES may hide it.",
        )


def offered(module: Any) -> bool:
    """Whether processes can share memory of this device module, as far as that can be told."""
    windows = "microsoft" in os.uname().release.lower()  # CUDA has no IPC under WSL
    return hasattr(module, "get_device_properties") and not windows


def require_lease(path: str) -> None:
    """Raise :class:`UnavailableError` where nobody holds the lock of an exported pool any more."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)
    raise UnavailableError(
        "The pool behind this handle is closed, or its process has ended.",
        hint="Export an open pool, and keep it open while others use it.",
    )


def share(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    """What another process needs to open a storage, without the index of its device."""
    _, *how = storage._share_cuda_()
    return tuple(how)


def open_shared(device: torch.device, how: tuple[Any, ...]) -> torch.UntypedStorage:
    """The storage behind what :func:`share` gave in another process."""
    shared = torch.UntypedStorage._new_shared_cuda  # noqa: SLF001 - torch.multiprocessing's own way
    return shared(device.index, *how)


def memory_of(storage: torch.UntypedStorage, start: int, nbytes: int) -> torch.Tensor:
    """Part of a storage, as bytes."""
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, start, (nbytes,), (1,))


def _lease(pages: torch.Tensor) -> str:
    """A file that is locked until the pool gives up ``pages``."""
    descriptor, path = tempfile.mkstemp(prefix="sagellm-kv-")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    weakref.finalize(pages, _end, descriptor, path)
    return path


def _end(descriptor: int, path: str) -> None:
    os.close(descriptor)
    Path(path).unlink(missing_ok=True)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:_DIGEST_BYTES]


def _worded(item: Any) -> Any:
    return {"bytes": base64.b64encode(item).decode()} if isinstance(item, bytes) else item


def _unworded(item: Any) -> Any:
    return base64.b64decode(item["bytes"]) if isinstance(item, dict) else item
