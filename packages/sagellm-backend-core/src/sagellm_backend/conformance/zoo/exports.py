"""Pools in files that other processes can map: honest, and then broken."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.zoo.features import Having
from sagellm_backend.conformance.zoo.member import honest, member
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVLayout, KVPool
from sagellm_backend.reference.kv import ReferenceKVPool

_SHARED = "kv.an_exported_pool_is_one_memory"
_WHOLE = "kv.handles_are_refused_when_they_are_not_whole"
_DIGEST_BYTES = 16


class SharedPool(ReferenceKVPool):
    """A pool in a file, which other processes can map."""

    def __init__(
        self, owner: Any, layout: KVLayout, num_blocks: int, place: Place, path: str | None = None
    ) -> None:
        super().__init__(owner, layout, num_blocks, place)
        self.path, self.own = path or _file_of(layout.nbytes(num_blocks)), path is None
        if self.own:
            owner.files.append(Path(self.path))
        memory = np.memmap(self.path, np.uint8, "r+")
        self.storage.memory = memory
        if layout.packing == "separate":
            self.pages = memory.reshape(layout.num_layers, 2, num_blocks, layout.block_bytes)
        else:
            shape = (layout.num_layers, num_blocks, 2, layout.block_bytes)
            self.pages = memory.reshape(shape).swapaxes(1, 2)

    def alloc(self, count: int) -> Any:
        if not self.own:
            raise InvalidArgumentError("The blocks of this pool are counted by another process.")
        return super().alloc(count)

    def _close(self) -> None:
        super()._close()
        if self.own:
            Path(self.path).unlink(missing_ok=True)


def _file_of(nbytes: int) -> str:
    descriptor, path = tempfile.mkstemp(prefix="sagellm-pool-")
    with os.fdopen(descriptor, "wb") as file:
        file.truncate(nbytes)
    return path


def _sealed(pool: SharedPool) -> bytes:
    """A handle: what the pool is and where, behind a digest of it."""
    text = json.dumps([pool.path, pool.layout.to_json(), pool.num_blocks]).encode()
    return hashlib.sha256(text).digest()[:_DIGEST_BYTES] + text


@honest("Its pools can be opened by other processes", profiles=("core", "kv"))
class ExportsPools(Having):
    has = frozenset({Feature.KV_EXPORT})
    opened: type[SharedPool] = SharedPool

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.files: list[Path] = []

    def close(self) -> None:
        super().close()
        for file in self.files:
            file.unlink(missing_ok=True)

    def _kv_pool(self, layout: KVLayout, num_blocks: int, place: Place) -> KVPool:
        return SharedPool(self, layout, num_blocks, place)

    def _kv_export(self, pool: Any) -> bytes:
        pool._require_open()
        return _sealed(pool)

    def _kv_open(self, handle: bytes) -> KVPool:
        text = handle[_DIGEST_BYTES:]
        if hashlib.sha256(text).digest()[:_DIGEST_BYTES] != handle[:_DIGEST_BYTES]:
            raise InvalidArgumentError("This is no handle of a pool, or not the whole of one.")
        return self._open(text)

    def _open(self, text: bytes) -> KVPool:
        try:
            path, layout, num_blocks = json.loads(text)
            place = self._place("device")
            return self.opened(
                self, KVLayout.from_json(layout), num_blocks, place, self._file(path)
            )
        except (ValueError, TypeError, OSError) as error:
            raise InvalidArgumentError(f"This is no handle of a pool: {error}.") from error

    def _file(self, path: str) -> str:
        """The file to map."""
        return path


@member("core", "A pool that is closed has a handle", kills=("core.kv_export_gives_handles",))
class HandlesOutliveTheirPool(ExportsPools):
    def _kv_export(self, pool: Any) -> bytes:
        return _sealed(pool)


@member("kv", "Opening a pool copies it", kills=(_SHARED,))
class OpeningCopiesThePool(ExportsPools):
    def _file(self, path: str) -> str:
        descriptor, copied = tempfile.mkstemp(prefix="sagellm-copy-")
        os.close(descriptor)
        self.files.append(Path(copied))
        shutil.copyfile(path, copied)
        return copied


class _RemovingPool(SharedPool):
    def _close(self) -> None:
        super()._close()
        Path(self.path).unlink(missing_ok=True)


@member("kv", "Closing an opened pool removes it for all", kills=(_SHARED,))
class ClosingRemovesThePool(ExportsPools):
    opened = _RemovingPool


@member("kv", "Handles are believed as they come", kills=(_WHOLE,))
class HandlesAreNotChecked(ExportsPools):
    def _kv_open(self, handle: bytes) -> KVPool:
        return self._open(handle[_DIGEST_BYTES:])


class _CountingPool(SharedPool):
    def alloc(self, count: int) -> Any:
        return ReferenceKVPool.alloc(self, count)


@member("kv", "An opened pool shares out the blocks of the other process", kills=(_WHOLE,))
class OpenedPoolsAllocate(ExportsPools):
    opened = _CountingPool
