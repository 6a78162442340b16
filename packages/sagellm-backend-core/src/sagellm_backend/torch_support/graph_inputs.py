"""What may be a static input of a graph, and what may take its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.checks import check_type, shown
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.torch_support import step


def check(inputs: Mapping[str, Any], device: torch.device) -> None:
    """Refuse tensors of other devices."""
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.device != device:
            raise InvalidArgumentError(
                f"{name} is on {value.device}; static inputs lie on {device}."
            )


def check_update(inputs: Mapping[str, Any], name: str, value: Any) -> None:
    """Refuse a name that the graph does not have, and a value that does not fit its captured one."""
    if name not in inputs:
        known = ", ".join(inputs) or "none"
        raise InvalidArgumentError(f"{shown(name)} is no input of this graph; it has {known}.")
    captured = inputs[name]
    if isinstance(captured, torch.Tensor):
        _check_array(name, captured, value)
    elif isinstance(captured, AttentionMetadata):
        problem = step.misfit(captured, check_type(name, value, AttentionMetadata))
        if problem:
            raise InvalidArgumentError(f"{name} does not fit this graph: {problem}.")
    elif type(value) is not type(captured) or value != captured:
        raise InvalidArgumentError(
            f"{name} is {shown(captured)} in this graph, for good, and not {shown(value)}.",
            hint="Pass it as an array, or capture another graph.",
        )


def _check_array(name: str, captured: torch.Tensor, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise InvalidArgumentError(f"{name} must be an array, not {shown(value)}.")
    pairs = (
        ("shape", tuple(captured.shape), tuple(value.shape)),
        ("dtype", captured.dtype, value.dtype),
        ("device", captured.device, value.device),
    )
    for word, wanted, given in pairs:
        if wanted != given:
            raise InvalidArgumentError(
                f"{name} has {word} {given}, and was captured with {wanted}."
            )
