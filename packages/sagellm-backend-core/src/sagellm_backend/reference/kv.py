"""KV pools in NumPy memory, and copies between them as work of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagellm_backend.errors import DeadlineExceededError, KVTransferError
from sagellm_backend.hooks import HOST, Place
from sagellm_backend.kv import KVCopyPlan, KVLayout, KVPool, Transfer
from sagellm_backend.kv.copy import Ids
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.memory import Storage
from sagellm_backend.reference.streams import ReferenceStream, Task
from sagellm_backend.streams import Stream

if TYPE_CHECKING:
    from sagellm_backend.reference.provider import ReferenceProvider

_KEYS, _VALUES = 0, 1


class ReferenceKVPool(KVPool):
    """A pool in one storage.

    ``pages`` shows it as bytes of shape (layers, 2, blocks, block_bytes), keys before values,
    whatever the packing: one block id of every row makes up a page.
    """

    owner: ReferenceProvider

    def __init__(
        self, owner: ReferenceProvider, layout: KVLayout, num_blocks: int, place: Place
    ) -> None:
        super().__init__(owner, layout, num_blocks, place.location, place.device)
        self.storage = Storage(layout.nbytes(num_blocks), layout.alignment)
        memory, layers = self.storage.memory, layout.num_layers
        if layout.packing == "separate":
            self.pages = memory.reshape(layers, 2, num_blocks, layout.block_bytes)
        else:
            self.pages = memory.reshape(layers, num_blocks, 2, layout.block_bytes).swapaxes(1, 2)

    def _key_cache(self, layer: int) -> DeviceArray:
        return self._cache(layer, _KEYS)

    def _value_cache(self, layer: int) -> DeviceArray:
        return self._cache(layer, _VALUES)

    def _cache(self, layer: int, kind: int) -> DeviceArray:
        blocks = self.pages[layer, kind].view(self.layout.dtype.numpy)
        values = blocks.reshape(self.num_blocks, *self.layout.block_shape)
        if self.layout.order == "HND":
            values = values.swapaxes(1, 2)
        device = HOST if self.location == "host" else self.device
        return DeviceArray(values, self.storage, device)

    def _close(self) -> None:
        self.storage.freed = True
        del self.storage, self.pages


class ReferenceKVCopyPlan(KVCopyPlan):
    """A batch is one task: all blocks are read and written on the thread of the stream.

    Without a stream the copy runs on the current stream of the source's device, after the work
    given so far to the target's, and is done on return.
    """

    source: ReferenceKVPool
    target: ReferenceKVPool

    def _copy(self, sources: Ids, targets: Ids, stream: Stream | None) -> Transfer:
        read, write = self.source.pages, self.target.pages
        from_ids, to_ids = sources.copy(), targets.copy()

        def work() -> None:
            write[:, :, to_ids] = read[:, :, from_ids]

        queue = stream if isinstance(stream, ReferenceStream) else self._ordered_stream()
        task = queue.submit(work, [self.target.storage])
        transfer = ReferenceTransfer(
            task, sources.size, sources.size * self.source.layout.page_bytes
        )
        if stream is None:
            task.join()
            transfer.wait()
        return transfer

    def _ordered_stream(self) -> ReferenceStream:
        stream, other = (
            pool.owner.current_stream(pool.device) for pool in (self.source, self.target)
        )
        if other is not stream:
            stream.submit(other.mark().join)
        return stream


class ReferenceTransfer(Transfer):
    """A copy as a task of a stream. A failure that :meth:`wait` raises shows nowhere else."""

    def __init__(self, task: Task, num_blocks: int, nbytes: int) -> None:
        super().__init__(num_blocks, nbytes)
        self._task = task

    def done(self) -> bool:
        return self._task.done()

    def _wait(self, timeout_s: float) -> None:
        if not self._task.join(timeout_s):
            raise DeadlineExceededError(
                f"Copying {self.num_blocks} KV blocks is still under way after {timeout_s} s.",
                blocks=self.num_blocks,
                timeout_s=timeout_s,
            )
        if self._task.error is not None:
            self._task.worker.forget_failure(self._task)
            raise KVTransferError(
                f"Copying {self.num_blocks} KV blocks failed: {self._task.error.message}",
                blocks=self.num_blocks,
            ) from self._task.error
