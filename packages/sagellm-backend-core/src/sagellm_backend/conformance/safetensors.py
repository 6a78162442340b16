"""Reading safetensors files: a length of 8 bytes, a JSON header, and the tensors' raw data.

The format is that of https://github.com/huggingface/safetensors. What is read here may come from
anywhere: every number in a header is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

_DTYPES = {"F32": DType.FP32, "F16": DType.FP16, "BF16": DType.BF16}
_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file by name, read-only and mapped into memory, in the order of the names.

    Raises :class:`InvalidArgumentError` for a file that is not of this format, is cut short, or
    holds tensors of other dtypes than F32, F16 and BF16, and ``OSError`` if it cannot be read.
    """
    data: npt.NDArray[np.uint8] = (
        np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    )
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    start = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or length > _MAX_HEADER or start > len(data):
        raise _refusal(path, f"it has {len(data):,} bytes, and its header would have {length:,}")
    try:
        header = json.loads(data[_LENGTH_BYTES:start].tobytes())
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _refusal(path, "its header is no object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, name, header[name], data[start:]) for name in sorted(header)}


def _tensor(path: Path, name: str, entry: Any, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if not isinstance(entry, Mapping) or str(entry.get("dtype")) not in _DTYPES:
        raise _refusal(path, f"{name!r} is none of {', '.join(_DTYPES)}: {str(entry)[:200]}")
    dtype, shape, offsets = _DTYPES[entry["dtype"]], entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise _refusal(path, f"{name!r} has the shape {shape} and the offsets {offsets}")
    first, end = offsets
    if not first <= end <= len(data) or end - first != dtype.nbytes(math.prod(shape)):
        raise _refusal(
            path, f"{name!r} of shape {shape} lies at {first:,} to {end:,} of {len(data):,} bytes"
        )
    return data[first:end].view(dtype.numpy).reshape(shape)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _refusal(path: Path, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path} is no safetensors file that can be used: {reason}.",
        hint="Remove the file and fetch the checkpoint again.",
    )
