"""Failures of kernels, which surface later than the call that caused them.

torch_npu queues a launch on the host, and the device queues the kernel: what fails there is raised
by whichever later call looks. Started with ASCEND_LAUNCH_BLOCKING=1, torch_npu waits for each kernel
and we wait behind each operation, so that a failure has the name of its cause.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch

from sagellm_backend.ascend import npu
from sagellm_backend.torch_support.errors import check, explain

# How torch_npu words what CANN or the device said, and not what it says of arguments itself.
_VENDOR = re.compile(r"error code is|inner error|acl stream synchronize|(uce|ecc|link|mem) error")


def named(operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, whose failures of CANN or the device are errors that name the operation.

    The hint says that an earlier call may be to blame, and how to find out.
    """

    @functools.wraps(kernel)
    def run(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            return kernel(first, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not _VENDOR.search(str(error).lower()):
                raise
            raise explain(operation, str(first.device), error) from error

    return run


def settled(operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, waited for: a failure of its work is raised by its own call."""

    @functools.wraps(kernel)
    def run(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = kernel(first, *args, **kwargs)
        with check(operation, str(first.device)):
            npu.current_stream(first.device).synchronize()
        return result

    return named(operation, run)
