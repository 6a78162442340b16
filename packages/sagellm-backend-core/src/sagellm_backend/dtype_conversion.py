"""Weights in fp8: quantised on the host, decoded on the device, as the published engine asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sagellm_backend.errors import InvalidArgumentError

_LARGEST = 448.0
_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class FP8Params:
    """How codes and values go together: ``value = code * scale``, one scale for the tensor."""

    scale: float


def compute_fp8_quantization_params_numpy(array: npt.NDArray[Any]) -> FP8Params:
    """The scale at which the largest magnitude of ``array`` is 448, the largest of e4m3fn.

    An array of zeros, or an empty one, has the scale 1e-12, from which no NaN comes. Raises
    :class:`InvalidArgumentError` for an array that is not floating or holds inf or NaN.
    """
    values = np.asarray(array)
    if not np.issubdtype(values.dtype, np.floating):
        raise InvalidArgumentError(f"fp8 codes are made of floating values, not of {values.dtype}.")
    largest = max(abs(float(values.max(initial=0.0))), abs(float(values.min(initial=0.0))))
    if not np.isfinite(largest):
        raise InvalidArgumentError(
            f"An array of shape {values.shape} holds inf or NaN, which no scale brings into fp8.",
            hint="Check the checkpoint, or load it without quantisation.",
        )
    return FP8Params(max(largest / _LARGEST, _SMALLEST_SCALE))


def quantize_to_fp8_numpy(array: npt.NDArray[Any], params: Any) -> npt.NDArray[np.uint8]:
    """The e4m3fn codes of ``array / params.scale``, rounded to nearest even, kept within 448.

    A new array of the same shape. ``params`` is anything with a ``scale`` above 0.
    """
    scaled = np.clip(np.asarray(array, np.float32) / params.scale, -_LARGEST, _LARGEST)
    codes: npt.NDArray[np.uint8] = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return codes


def _decode_fp8_e4m3_torch(encoded: Any) -> Any:
    """The float32 values of a uint8 tensor of e4m3fn codes, not yet scaled; on its device."""
    import torch

    return encoded.view(torch.float8_e4m3fn).float()
