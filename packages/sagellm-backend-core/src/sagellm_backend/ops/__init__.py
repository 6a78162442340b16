"""The operation table and the dispatch to implementations."""

from sagellm_backend.ops import linear as _linear  # noqa: F401
from sagellm_backend.ops.table import OPERATIONS, Accuracy, Operation, operation

__all__ = ["OPERATIONS", "Accuracy", "Operation", "operation"]
