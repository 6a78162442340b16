"""The KV side of a provider: pools, copies, and the blocks of Protocol v0.1."""

from __future__ import annotations

import weakref
from functools import cached_property

from sagellm_backend.base_checks import ProviderChecks
from sagellm_backend.capability import Feature, KVCapability
from sagellm_backend.checks import check_int, check_type
from sagellm_backend.devices import parse_device_str
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.hooks import Place
from sagellm_backend.kv import KVBlock, KVCopyPlan, KVLayout, KVPool
from sagellm_backend.kv.tokens import TokenBlocks


class KVMethods(ProviderChecks):
    """Memory for keys and values. Thread-safe."""

    _tokens: TokenBlocks

    def kv_pool(self, layout: KVLayout, num_blocks: int, location: str = "device") -> KVPool:
        """A pool of ``num_blocks`` blocks, with its storage allocated.

        The caller closes it; a pool that is garbage-collected gives its memory back too. Raises
        :class:`CapabilityError` for a layout that this device has no kernels for and
        :class:`OutOfMemoryError` with the bytes requested and free.
        """
        self._require_open()
        check_type("layout", layout, KVLayout)
        self._kv_claims.require(layout, self.name)
        blocks = check_int("num_blocks", num_blocks, high=(1 << 31) - 1)
        place = self._place(location)
        self.require(Feature.KV_HOST_POOL if place.location == "host" else Feature.KV_POOL)
        ledger, nbytes = self._ledgers.of(self._account(place)), layout.nbytes(blocks)
        ledger.charge(nbytes, "kv")
        try:
            pool = self._kv_pool(layout, blocks, place)
        except BaseException:
            ledger.release(nbytes, "kv")
            raise
        pool.on_close = weakref.finalize(pool, ledger.release, nbytes, "kv")
        return pool

    def kv_copy_plan(self, source: KVPool, target: KVPool) -> KVCopyPlan:
        """A plan for copies from one pool to another, both of this provider."""
        self._own_pool("source", source)
        self._own_pool("target", target)
        if source.device != target.device:
            self.require(Feature.KV_PEER_COPY)
        return self._kv_copy_plan(source, target)

    def kv_export(self, pool: KVPool) -> bytes:
        """A handle by which another process on this machine can open the pool.

        Needs ``Feature.KV_EXPORT``. The pool must stay open for as long as the handle or what was
        opened by it is in use; who may write which block is for the two processes to agree on.
        """
        self._require_open()
        self.require(Feature.KV_EXPORT)
        return self._kv_export(self._own_pool("pool", pool))

    def kv_open(self, handle: bytes) -> KVPool:
        """The pool behind a handle of :meth:`kv_export`, over the same memory.

        Its block ids are counted by the process that made it: here no block can be allocated or
        freed. Closing it leaves the other process's pool as it is. Raises
        :class:`InvalidArgumentError` for bytes that are no handle, or not the whole of one.
        """
        self._require_open()
        self.require(Feature.KV_EXPORT)
        return self._kv_open(check_type("handle", handle, bytes))

    def kv_block_alloc(self, num_tokens: int, dtype: DType) -> KVBlock:
        """KV memory for ``num_tokens`` tokens (Protocol v0.1), from a default pool."""
        self._require_open()
        parsed = DType.parse(dtype)
        if parsed not in self._kv_claims.dtypes:
            raise CapabilityError(f"KV blocks of {parsed.value}", self.name, "no such pool here.")
        return self._tokens.alloc(num_tokens, parsed, self.device)

    def kv_block_free(self, block: KVBlock) -> None:
        """Give a block back; one freed before, or of another provider, is refused."""
        self._tokens.free(block)

    def kv_block_copy(self, src: KVBlock, dst: KVBlock) -> None:
        """Copy the contents of one block over another of equal dtype and token count."""
        self._require_open()
        self._tokens.copy(src, dst)

    def kv_block_migrate(self, block: KVBlock, target_device: str) -> KVBlock:
        """Move a block to another device of this backend; the old block is freed."""
        self._require_open()
        device_type, _ = parse_device_str(target_device)
        if device_type != self.device_type:
            raise CapabilityError(
                f"migration to {target_device}",
                self.name,
                f"blocks move between {self.device_type} devices.",
                hint="Copy through a host pool with kv_copy_plan() to leave the backend.",
            )
        return self._tokens.migrate(block, self._place(target_device).device)

    def _own_pool(self, name: str, pool: KVPool) -> KVPool:
        if check_type(name, pool, KVPool).owner is not self:
            raise InvalidArgumentError(f"The {name} belongs to another provider.")
        return pool

    @cached_property
    def _kv_claims(self) -> KVCapability:
        # Frozen, and asked by every allocation: the whole descriptor would cost more than the rest.
        return self._capability().kv

    def _token_pool(self, layout: KVLayout, num_blocks: int, device: str) -> KVPool:
        self._kv_claims.require(layout, self.name)
        return self._kv_pool(layout, num_blocks, Place("device", device))
