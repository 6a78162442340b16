"""The methods of Protocol v0.1 that stand on others of the contract: KV blocks and collectives."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sagellm_backend.capability import KVCapability
from sagellm_backend.checks import shown
from sagellm_backend.collectives import Communicator, ReduceOp
from sagellm_backend.devices import parse_device_str
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, UnavailableError
from sagellm_backend.hooks import Place, ProviderHooks
from sagellm_backend.kv import KVBlock
from sagellm_backend.kv.tokens import TokenBlocks


class ProtocolMethods(ProviderHooks):
    """KV memory in tokens, and collectives of the default group."""

    closed: bool
    _tokens: TokenBlocks
    _default_communicator: Communicator | None

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

    def all_reduce(self, tensor: Any, op: str = "sum") -> None:
        """Reduce in place over the default communicator; alone, the identity."""
        self._require_native("tensor", tensor)
        reduction = ReduceOp.parse(op)
        if self._default_communicator is not None:
            self._default_communicator.all_reduce(tensor, reduction)

    def all_gather(self, tensor: Any) -> Any:
        """Every rank's array stacked by rank; alone, the array as (1, ...)."""
        self._require_native("tensor", tensor)
        if self._default_communicator is not None:
            return self._default_communicator.all_gather(tensor)
        return tensor.reshape((1, *tensor.shape))

    @cached_property
    def _kv_claims(self) -> KVCapability:
        # Frozen, and asked by every allocation: the whole descriptor would cost more than the rest.
        return self._capability().kv

    def _require_open(self) -> None:
        if self.closed:
            raise UnavailableError(
                f"This {self.name} provider is closed.", hint="Make a new one with get_provider()."
            )

    def _require_native(self, name: str, array: Any) -> None:
        if not self._is_native(array):
            raise InvalidArgumentError(
                f"{name} must be an array of backend {self.name!r}, not {type(array).__name__}.",
                hint="Make one with backend.from_numpy(...).",
            )

    def _place(self, location: str) -> Place:
        word: object = location  # arrays, too, compare with strings
        if isinstance(word, str) and word in {"device", "host"}:
            return Place(word, self.device)
        device_type, index = parse_device_str(location)
        count = self._device_count()
        if device_type != self.device_type or (index or 0) >= count:
            raise InvalidArgumentError(
                f"{shown(location)} is no location of backend {self.name!r}.",
                hint=f"Use 'device', 'host', or {self.device_type}:0 to :{count - 1}.",
            )
        return Place("device", self._device_name(index or 0))
