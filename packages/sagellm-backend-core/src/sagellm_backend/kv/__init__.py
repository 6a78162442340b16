"""KV cache: core owns block ids and their rules; providers own storage, layout and movement."""

from sagellm_backend.kv.blocks import BlockAllocator, BlockIds
from sagellm_backend.kv.copy import CompletedTransfer, KVCopyPlan, Transfer
from sagellm_backend.kv.layout import KVLayout
from sagellm_backend.kv.pool import KVBlock, KVPool

__all__ = [
    "BlockAllocator",
    "BlockIds",
    "CompletedTransfer",
    "KVBlock",
    "KVCopyPlan",
    "KVLayout",
    "KVPool",
    "Transfer",
]
