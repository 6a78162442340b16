"""The tensors of a paged step: where tokens go, and which rows of a padded batch they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sagellm_backend.attention.metadata import AttentionMetadata
from sagellm_backend.checks import shown
from sagellm_backend.errors import InvalidArgumentError, UnavailableError


def check_device(device: Any) -> torch.device:
    """``device`` with its index, if tensors can be made there.

    Raises :class:`InvalidArgumentError` for what names no torch device, and
    :class:`UnavailableError` for one that this machine does not have.
    """
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"{shown(device)} is no torch device: {error}") from error
    try:
        return torch.empty(0, device=parsed).device
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UnavailableError(
            f"This machine has no torch device {str(parsed)!r}: {reason}",
            hint="Give the device of the model, or none to take that of the block tables.",
        ) from error


def host_table(tables: Any, device: torch.device | None) -> tuple[Any, torch.device]:
    """Block tables on the host, and the device that their step belongs to."""
    if not isinstance(tables, Tensor):
        return tables, device or torch.device("cpu")
    if tables.dtype in {torch.bfloat16, torch.float8_e4m3fn}:
        raise InvalidArgumentError(f"block_table must be integers, not {tables.dtype}.")
    return tables.detach().cpu(), device or tables.device


def to_tensor(array: npt.NDArray[Any] | None, device: torch.device) -> Tensor:
    """A copy of a host array as int64."""
    return torch.from_numpy(np.array(array, np.int64)).to(device)


def slots(step: AttentionMetadata, device: torch.device) -> Tensor:
    """The slot of each new token; made once per step and device."""
    return _kept(step, ("paged.slots", device), lambda: to_tensor(step.slots(), device))


def rows(step: AttentionMetadata, width: int, device: torch.device) -> Tensor:
    """Where the new tokens stand among ``batch * width`` rows padded on the right."""

    def make() -> Tensor:
        sequence = np.repeat(np.arange(step.batch), step.query_lens)
        offset = np.arange(step.num_query_tokens) - step.cu_query[sequence]
        return to_tensor(sequence * width + offset, device)

    return _kept(step, ("paged.rows", width, device), make)


def is_causal(mask: Tensor, step: AttentionMetadata, window: int | None) -> bool:
    """Whether a (batch, 1, width, width) mask shows each token all before it, or its window.

    Rows of padding may hold anything. Waits for the device; the last mask found good is kept.
    """
    key = ("paged.mask", window)
    if step.native.get(key) is mask:
        return True
    place = torch.arange(mask.shape[-1], device=mask.device)
    lengths = to_tensor(step.query_lens, mask.device)
    real = (place < lengths[:, None])[..., None]
    seen = place <= place[:, None]
    good = _agrees(mask, seen, real)
    if not good and window is not None:
        good = _agrees(mask, seen & (place > place[:, None] - window), real)
    if good:
        step.native[key] = mask
    return good


def _agrees(mask: Tensor, seen: Tensor, real: Tensor) -> bool:
    return not bool(((mask[:, 0] != seen) & real).any())


def _kept(step: AttentionMetadata, key: Any, make: Callable[[], Tensor]) -> Tensor:
    # Two threads may both make it: they make the same.
    found: Tensor | None = step.native.get(key)
    if found is None:
        found = step.native[key] = make()
    return found
