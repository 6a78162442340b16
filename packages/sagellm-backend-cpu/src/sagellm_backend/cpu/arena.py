"""The memory of one graph."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sagellm_backend.cpu import memory


class Arena:
    """Memory of one graph: what tensors of the capture left free, later ones of it take over.

    In a replay the work goes in the same order, so that nobody writes what another still reads.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._free: defaultdict[int, list[np.ndarray[Any, Any]]] = defaultdict(list)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(block.nbytes for block in self._blocks.values())

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor lies here."""
        return storage_of(tensor) in self._blocks

    def like(self, tensor: Tensor) -> Tensor:
        """A contiguous tensor of the same shape and dtype; its memory returns when it dies."""
        nbytes = -(-max(tensor.nbytes, 1) // memory.ALIGNMENT) * memory.ALIGNMENT
        free = self._free[nbytes]
        if free:
            block = free.pop()
        else:
            whole = memory.allocate(nbytes)
            self._blocks[whole.data_ptr()] = whole
            block = whole.numpy()
        lease = block[:]
        # The tensor's storage holds this array, so it dies with the last view of the storage.
        weakref.finalize(lease, free.append, block).atexit = False
        flat = torch.from_numpy(lease)[: tensor.nbytes].view(tensor.dtype)
        return flat.view(tensor.shape)


def storage_of(tensor: Tensor) -> int:
    """What tells memory of tensors apart."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return id(tensor)  # of a layout without memory in one piece
