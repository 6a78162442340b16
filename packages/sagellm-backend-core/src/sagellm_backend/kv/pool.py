"""KV pools: block ids over real storage."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sagellm_backend.checks import check_int
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import UnavailableError
from sagellm_backend.kv.blocks import BlockAllocator, BlockIds
from sagellm_backend.kv.layout import KVLayout

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class KVBlock:
    """A run of KV memory by Protocol v0.1, in tokens.

    ``handle`` is unique in this process and means nothing outside the provider that gave it.
    """

    handle: int
    num_tokens: int
    dtype: DType
    device: str


class KVPool(ABC):
    """A fixed number of KV blocks in one memory, and the ids to share them out.

    Ids, reference counts and their checks are core's; storage, layout and movement the provider's.
    Contents of a fresh block are unspecified. Methods on ids are thread-safe; writing one block
    from two threads at once is the caller's race.
    """

    def __init__(
        self, owner: object, layout: KVLayout, num_blocks: int, location: str, device: str
    ) -> None:
        self.owner = owner
        self.layout = layout
        self.location = location
        self.device = device
        self.closed = False
        self.on_close: Callable[[], object] | None = None
        self._blocks = BlockAllocator(num_blocks)
        self._closing = threading.Lock()

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._blocks.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now."""
        return self._blocks.num_free

    @property
    def nbytes(self) -> int:
        """Bytes of the pool's storage."""
        return self.layout.nbytes(self.num_blocks)

    def alloc(self, count: int) -> BlockIds:
        """``count`` block ids; see :meth:`BlockAllocator.alloc`."""
        self._require_open()
        return self._blocks.alloc(count)

    def alloc_tokens(self, num_tokens: int) -> BlockIds:
        """As many blocks as ``num_tokens`` need."""
        return self.alloc(self.layout.blocks_for(check_int("num_tokens", num_tokens, low=0)))

    def retain(self, ids: Any) -> None:
        """Add a reference to each block, as when two sequences share a prefix."""
        self._require_open()
        self._blocks.retain(ids)

    def free(self, ids: Any) -> int:
        """Drop a reference from each block; see :meth:`BlockAllocator.free`."""
        self._require_open()
        return self._blocks.free(ids)

    def references(self, ids: Any) -> npt.NDArray[np.int32]:
        """The reference count of each block."""
        self._require_open()
        return self._blocks.references(ids)

    def require_held(self, ids: Any) -> npt.NDArray[np.int64]:
        """``ids`` as int64 if all are allocated and distinct, else :class:`InvalidArgumentError`."""
        self._require_open()
        return self._blocks.require_held(ids)

    def key_cache(self, layer: int) -> Any:
        """Keys of one layer: a native array (blocks, block_size, kv_heads, head_dim).

        It is a view of the pool's storage, writable, and valid until the pool is closed. The
        layout's order and packing show in its strides.
        """
        self._require_open()
        return self._key_cache(check_int("layer", layer, low=0, high=self.layout.num_layers - 1))

    def value_cache(self, layer: int) -> Any:
        """Values of one layer; as :meth:`key_cache`."""
        self._require_open()
        return self._value_cache(check_int("layer", layer, low=0, high=self.layout.num_layers - 1))

    def close(self) -> None:
        """Give the storage back. Closing twice is allowed; any other later call is refused."""
        with self._closing:
            if self.closed:
                return
            self.closed = True
        self._close()
        if self.on_close is not None:
            self.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self.closed:
            raise UnavailableError("This KV pool is closed.", hint="Make a new one with kv_pool().")

    @abstractmethod
    def _key_cache(self, layer: int) -> Any: ...

    @abstractmethod
    def _value_cache(self, layer: int) -> Any: ...

    @abstractmethod
    def _close(self) -> None: ...
