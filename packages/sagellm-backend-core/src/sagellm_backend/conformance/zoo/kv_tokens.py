"""Faults of Protocol's token blocks."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.kv import KVBlock
from sagellm_backend.reference.provider import ReferenceProvider


@member(
    "kv", "All token blocks begin in one page", kills=("kv.token_blocks_are_memory_of_their_own",)
)
class TokenBlocksAlias(ReferenceProvider):
    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        made = super().kv_block_alloc(num_tokens, dtype)
        held = self._tokens._held
        first = next(iter(held.values())).ids
        own = held[made.handle]
        held[made.handle] = own._replace(ids=np.append(first[:1], own.ids[1:]))
        return made


@member(
    "kv",
    "Token blocks do not count as KV memory",
    kills=("kv.token_blocks_are_accounted_for",),
)
class TokenBlocksAreNotCounted(ReferenceProvider):
    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        made = super().kv_block_alloc(num_tokens, dtype)
        pool, ids = self._tokens.find(made)
        self._ledgers.of(self.device).return_reserved(ids.size * pool.layout.page_bytes)
        return made


@member("kv", "Copying a token block does nothing", kills=("kv.token_blocks_are_copied_whole",))
class TokenCopyDoesNothing(ReferenceProvider):
    def kv_block_copy(self, src: KVBlock, dst: KVBlock) -> None:
        self._tokens.find(src), self._tokens.find(dst)


@member(
    "kv",
    "Copying a token block copies the first of its pages",
    kills=("kv.token_blocks_are_copied_whole",),
)
class TokenCopyIsPartial(ReferenceProvider):
    def kv_block_copy(self, src: KVBlock, dst: KVBlock) -> None:
        (pool, ids), (other, others) = self._tokens.find(src), self._tokens.find(dst)
        self.kv_copy_plan(pool, other).copy(ids[:1], others[:1]).wait()


@member(
    "kv",
    "Migration brings a block of noise",
    kills=("kv.token_blocks_migrate_with_their_contents",),
)
class MigrationMovesNothing(ReferenceProvider):
    def kv_block_migrate(self, block: KVBlock, target_device: str) -> KVBlock:
        self._tokens.find(block)
        place = self._place(target_device)
        moved = self._tokens.alloc(block.num_tokens, block.dtype, place.device)
        self.kv_block_free(block)
        return moved


@member(
    "kv",
    "Migration keeps the memory of the old block",
    kills=("kv.token_blocks_migrate_with_their_contents",),
)
class MigrationKeepsTheOld(ReferenceProvider):
    def kv_block_migrate(self, block: KVBlock, target_device: str) -> KVBlock:
        device = self._place(target_device).device
        moved = self._tokens.alloc(block.num_tokens, block.dtype, device)
        self._tokens.copy(block, moved)
        return moved


@member(
    "kv",
    "A migration to nowhere frees the block",
    kills=("kv.migration_elsewhere_is_refused",),
)
class MigrationLosesBlock(ReferenceProvider):
    def kv_block_migrate(self, block: KVBlock, target_device: str) -> KVBlock:
        try:
            return super().kv_block_migrate(block, target_device)
        except Exception:
            self.kv_block_free(block)
            raise


@member(
    "kv",
    "A block is believed whatever it says of itself",
    kills=("kv.forged_token_blocks_are_refused",),
)
class TokenBlocksAreBelieved(ReferenceProvider):
    def kv_block_free(self, block: KVBlock) -> None:
        held = self._tokens._held.get(getattr(block, "handle", -1))
        super().kv_block_free(held.block if held else block)


@member(
    "kv",
    "Token blocks that do not fit are refused without a word of how many there are",
    kills=("kv.token_blocks_run_out_and_come_back",),
)
class TokenBlocksRunOutUntyped(ReferenceProvider):
    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        try:
            return super().kv_block_alloc(num_tokens, dtype)
        except OutOfMemoryError as error:
            raise OutOfMemoryError("Out of memory.") from error


@member(
    "kv",
    "A closed provider still gives token blocks",
    kills=("kv.token_blocks_end_with_their_provider",),
)
class TokenBlocksOutliveTheirProvider(ReferenceProvider):
    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        return self._tokens.alloc(num_tokens, DType.parse(dtype), self.device)
