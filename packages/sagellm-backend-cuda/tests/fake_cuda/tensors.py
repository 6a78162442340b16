"""Fake tensors of device ``cuda``, and what of its module is asked for without a driver."""

from __future__ import annotations

import types

import torch


def module(count=1, capability=(9, 0)):
    """What of torch.cuda is asked for without a driver."""
    return types.SimpleNamespace(
        device_count=lambda: count,
        get_device_capability=lambda device: capability,
        mem_get_info=lambda device: (1 << 34, 1 << 35),
    )


def wide(shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="cuda:0")
