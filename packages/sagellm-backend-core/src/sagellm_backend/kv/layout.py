"""How a KV pool looks in memory, as data that can be stored and sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from sagellm_backend.checks import check_choice, check_int
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

Order = Literal["NHD", "HND"]
Packing = Literal["separate", "packed"]
ORDERS: tuple[Order, ...] = ("NHD", "HND")
PACKINGS: tuple[Packing, ...] = ("separate", "packed")


@dataclass(frozen=True)
class KVLayout:
    """The shape of a KV pool, without its number of blocks.

    Operations always see caches of logical shape (blocks, block_size, num_kv_heads, head_dim).
    What differs in memory is said here:

    - ``order``: inside a block, tokens before heads (``NHD``) or heads before tokens (``HND``);
    - ``packing``: all key blocks of a layer and then all value blocks (``separate``), or the value
      block right behind each key block (``packed``);
    - ``alignment``: every block starts at a multiple of this many bytes from the pool's base, which
      is aligned likewise;
    - ``index_dtype``: the type of block tables and slots on the device.

    Frozen, hashable, and serialisable by :meth:`to_json`. Raises :class:`InvalidArgumentError`.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: DType
    order: Order = "NHD"
    packing: Packing = "separate"
    alignment: int = 64
    index_dtype: DType = DType.INT32

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "block_size", "alignment"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), high=1 << 24))
        object.__setattr__(self, "dtype", DType.parse(self.dtype))
        object.__setattr__(self, "index_dtype", DType.parse(self.index_dtype))
        check_choice("order", self.order, ORDERS)
        check_choice("packing", self.packing, PACKINGS)
        if self.index_dtype not in (DType.INT32, DType.INT64):
            raise InvalidArgumentError(
                f"index_dtype must be int32 or int64, not {self.index_dtype}."
            )
        if self.alignment & (self.alignment - 1):
            raise InvalidArgumentError(f"alignment must be a power of two, not {self.alignment}.")
        if self.block_bytes % self.alignment:
            raise InvalidArgumentError(
                f"A block of {self.block_bytes} bytes is not a multiple of the alignment "
                f"{self.alignment}.",
                hint="Choose a larger block_size or a smaller alignment.",
                block_bytes=self.block_bytes,
                alignment=self.alignment,
            )

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """One block of one layer's keys (or values) as it lies in memory."""
        if self.order == "NHD":
            return (self.block_size, self.num_kv_heads, self.head_dim)
        return (self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of one layer's keys (or values)."""
        return self.dtype.nbytes(self.block_size * self.num_kv_heads * self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes that one block id stands for: keys and values of every layer."""
        return 2 * self.num_layers * self.block_bytes

    def nbytes(self, num_blocks: int) -> int:
        """Bytes of a pool of ``num_blocks``."""
        return num_blocks * self.page_bytes

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks ``num_tokens`` need."""
        return -(-num_tokens // self.block_size)

    def to_json(self) -> str:
        """A stable text form; :meth:`from_json` reads it back."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data.update(dtype=self.dtype.value, index_dtype=self.index_dtype.value)
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> KVLayout:
        """The layout that :meth:`to_json` wrote. Raises :class:`InvalidArgumentError`."""
        try:
            data: Any = json.loads(text)
            return cls(**data)
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(f"This is not a KV layout: {error}") from error
