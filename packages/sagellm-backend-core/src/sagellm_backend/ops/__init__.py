"""The operation table and the dispatch to implementations."""

from sagellm_backend.ops import (
    activation,
    attention,
    kv_write,
    linear,
    norm,
    quantised,
    rope,
    sampling,
)
from sagellm_backend.ops.args import Accuracy
from sagellm_backend.ops.table import OPERATIONS, Operation, operation

GROUPS = (linear, quantised, norm, activation, rope, kv_write, attention, sampling)
"""The modules that declare the operations, one per group."""

__all__ = ["GROUPS", "OPERATIONS", "Accuracy", "Operation", "operation"]
