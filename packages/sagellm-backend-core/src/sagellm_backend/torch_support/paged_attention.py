"""The paged attention that the published engine calls, isagellm-core 0.5, over our operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sagellm_backend.attention.paged_metadata import PagedAttentionMetadata
from sagellm_backend.base import BackendProvider
from sagellm_backend.checks import check_int, shown
from sagellm_backend.errors import CapabilityError, InvalidArgumentError
from sagellm_backend.ops.statics import optional, positive_int, positive_real
from sagellm_backend.registry import get_provider
from sagellm_backend.torch_support import paged_tensors
from sagellm_backend.torch_support.misuse import FLOATING

_window, _softcap = optional(positive_int), optional(positive_real)


class PagedAttentionBackend:
    """Attention over a paged cache in the calling convention of the published engine.

    An adapter: keys and values go into the cache by the provider's ``kv_write``, and its
    ``attention`` computes the rest. ``provider`` has arrays of torch; ``get_provider("auto")`` by
    default. ``window`` and ``softcap`` hold for every call that gives none of its own, with the
    meaning that the operation ``attention`` gives them. ``block_size``, when given, is the only one
    that calls may have. Thread-safe; what belongs to a step is kept in its metadata.

    Raises :class:`CapabilityError` for a provider of another framework, and for
    ``use_vllm_kernel``, which the engine asks for when ``SAGELLM_ENABLE_CUDA_PAGED_ATTENTION`` is
    set; :class:`InvalidArgumentError` for a bad size, window or softcap.
    """

    name = "paged"
    supports_paged_attention = True
    supports_gqa = True

    def __init__(
        self,
        provider: BackendProvider | None = None,
        *,
        window: int | None = None,
        softcap: float | None = None,
        block_size: int | None = None,
        use_vllm_kernel: bool = False,
    ) -> None:
        self.provider = get_provider("auto") if provider is None else provider
        if use_vllm_kernel:
            raise CapabilityError(
                "use_vllm_kernel",
                self.provider.name,
                "attention runs in its own kernels.",
                hint="Unset SAGELLM_ENABLE_CUDA_PAGED_ATTENTION: the paged path of isagellm-core "
                "0.5 fails with every backend.",
            )
        framework = self.provider.array_framework
        if framework != "torch":
            raise CapabilityError(
                "paged attention backend", self.provider.name, f"its arrays are of {framework}."
            )
        _check_option("window", window, _window)
        _check_option("softcap", softcap, _softcap)
        self.window, self.softcap = window, softcap
        self.block_size = None if block_size is None else check_int("block_size", block_size)

    @property
    def supports_sliding_window(self) -> bool:
        """Whether the provider's attention computes with a window."""
        return not self.provider.supports("attention", window=1)

    @property
    def supports_softcap(self) -> bool:
        """Whether the provider's attention computes with a softcap."""
        return not self.provider.supports("attention", softcap=1.0)

    def get_kv_cache_shape(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> tuple[int, int, int, int]:
        """The shape of a layer's key cache, and of its value cache; all sizes are 1 or more."""
        return (
            check_int("num_blocks", num_blocks),
            check_int("block_size", block_size),
            check_int("num_kv_heads", num_kv_heads),
            check_int("head_dim", head_dim),
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_metadata: PagedAttentionMetadata,
        kv_cache: tuple[Tensor, Tensor],
        scale: float,
        attn_mask: Tensor | None = None,
        *,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Write the new keys and values into ``kv_cache``, in place, and attend to all of it.

        ``query`` is (rows, heads, head_dim), ``key`` and ``value`` (rows, kv_heads, head_dim),
        positions already applied; the result has the shape of ``query``. In a decode there is one
        row for each sequence. In a prefill the rows are packed, ``sum(seq_lens)`` of them, or
        padded on the right, ``batch * width``; rows of padding are neither written nor attended to,
        whatever they hold, and give zeros. ``kv_cache`` is the layer's pair, each of the shape that
        :meth:`get_kv_cache_shape` gives. Logits are ``q . k * scale``.

        Every token attends to those before it in its sequence and to itself, within the window.
        A prefill's ``attn_mask``, a bool (batch, 1, width, width) with True for what may be seen,
        must say the same of the rows that are tokens; a decode does not look at it.

        Raises :class:`InvalidArgumentError` for whatever does not fit, before anything is written.
        """
        window = self.window if window is None else window
        softcap = self.softcap if softcap is None else softcap
        _check_option("window", window, _window)
        _check_option("softcap", softcap, _softcap)
        _check_option("scale", scale, positive_real)
        _check_metadata(attn_metadata, self.block_size)
        _check_arrays(query, key, value, kv_cache, attn_metadata)
        step, keys, values = attn_metadata.step, kv_cache[0], kv_cache[1]
        width = _width(query.shape[0], attn_metadata)
        if attn_mask is not None and attn_metadata.is_prefill:
            _check_mask(attn_mask, attn_metadata, width, window)
        chosen = {"dtype": query.dtype, "head_dim": query.shape[2]}
        write = self.provider.get_kernel("kv_write", **chosen)
        attention = self.provider.get_kernel(
            "attention", mode=step.mode, window=window, softcap=softcap, **chosen
        )
        slots = paged_tensors.slots(step, query.device)
        options = {"scale": scale, "window": window, "softcap": softcap}
        if width is None:
            write(key, value, keys, values, slots)
            result: Tensor = attention(query, keys, values, step, **options)
            return result
        rows = paged_tensors.rows(step, width, query.device)
        write(key[rows], value[rows], keys, values, slots)
        packed = attention(query[rows], keys, values, step, **options)
        return query.new_zeros(query.shape).index_copy_(0, rows, packed)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_metadata: PagedAttentionMetadata,
        kv_cache: tuple[Tensor, Tensor],
        scale: float,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward`, as the engine calls a kernel named ``attention``."""
        return self.forward(q, k, v, attention_metadata, kv_cache, scale, attn_mask)


def _check_option(name: str, value: Any, rule: Any) -> None:
    wanted = rule(value)
    if wanted:
        raise InvalidArgumentError(f"paged attention: {name} must be {wanted}, not {shown(value)}.")


def _check_metadata(metadata: Any, block_size: int | None) -> None:
    if not isinstance(metadata, PagedAttentionMetadata):
        raise InvalidArgumentError(
            "paged attention: the metadata must be a PagedAttentionMetadata, "
            f"not {type(metadata).__name__}.",
            hint="Make it with PagedAttentionMetadataBuilder.",
        )
    if block_size not in {None, metadata.step.block_size}:
        raise InvalidArgumentError(
            f"This backend was made for blocks of {block_size}, the metadata for blocks of "
            f"{metadata.step.block_size}."
        )


def _check_arrays(
    query: Any, key: Any, value: Any, kv_cache: Any, metadata: PagedAttentionMetadata
) -> None:
    """Everything that ``kv_write`` and ``attention`` would refuse, before either has begun."""
    if not isinstance(kv_cache, (tuple, list)) or len(kv_cache) != 2:
        raise InvalidArgumentError(
            f"kv_cache must be the pair of a layer's key and value cache, not {type(kv_cache).__name__}."
        )
    arrays = {"query": query, "key": key, "value": value}
    arrays |= {"key cache": kv_cache[0], "value cache": kv_cache[1]}
    for name, array in arrays.items():
        dimensions = 4 if name.endswith("cache") else 3
        if not isinstance(array, Tensor) or array.dim() != dimensions:
            shape = tuple(getattr(array, "shape", ())) or shown(array)
            raise InvalidArgumentError(
                f"{name} must be a tensor of {dimensions} dimensions, not {shape}."
            )
        if array.dtype is not query.dtype or array.device != query.device:
            raise InvalidArgumentError(
                f"{name} is {array.dtype} on {array.device}, query {query.dtype} on {query.device}."
            )
    if query.dtype not in FLOATING:
        raise InvalidArgumentError(
            f"Attention is computed in fp32, fp16 and bf16, not {query.dtype}."
        )
    _check_shapes(query, key, value, kv_cache, metadata)


def _check_shapes(
    query: Tensor, key: Tensor, value: Tensor, kv_cache: Any, metadata: PagedAttentionMetadata
) -> None:
    rows, heads, head_dim = query.shape
    kv_heads, cache = key.shape[1], kv_cache[0].shape
    if key.shape != value.shape or key.shape[::2] != (rows, head_dim):
        raise InvalidArgumentError(
            f"key {tuple(key.shape)} and value {tuple(value.shape)} must have the {rows} rows and "
            f"the head size {head_dim} of query."
        )
    if not (heads and kv_heads and head_dim) or heads % kv_heads:
        raise InvalidArgumentError(
            f"query has {heads} heads of {head_dim}, which is no multiple of the {kv_heads} of key."
        )
    wanted = (metadata.num_kv_heads or kv_heads, metadata.head_dim or head_dim)
    if wanted != (kv_heads, head_dim):
        raise InvalidArgumentError(
            f"key has {kv_heads} heads of {head_dim}, its metadata was made for {wanted[0]} heads "
            f"of {wanted[1]}."
        )
    block_size = metadata.step.block_size
    if cache != kv_cache[1].shape or cache[1:] != (block_size, kv_heads, head_dim):
        raise InvalidArgumentError(
            f"The caches have shapes {tuple(cache)} and {tuple(kv_cache[1].shape)}, wanted (blocks, "
            f"{block_size}, {kv_heads}, {head_dim}) for both."
        )
    if kv_cache[0].data_ptr() == kv_cache[1].data_ptr() and kv_cache[0].numel():
        raise InvalidArgumentError("The key cache and the value cache are the same memory.")
    metadata.step.check_blocks(cache[0])


def _width(rows: int, metadata: PagedAttentionMetadata) -> int | None:
    """The rows of each padded sequence; ``None`` where every row is a token."""
    batch, tokens = metadata.step.batch, metadata.step.num_query_tokens
    if rows == tokens:
        return None
    width, rest = divmod(rows, batch)
    longest = metadata.step.max_query_len
    if not metadata.is_prefill or rest or width < longest:
        padded = f", or {batch} times {longest} or more" if metadata.is_prefill else ""
        raise InvalidArgumentError(
            f"query has {rows} rows; the metadata has {tokens} new tokens of {batch} sequences, "
            f"which takes {tokens} rows{padded}."
        )
    return width


def _check_mask(
    mask: Any, metadata: PagedAttentionMetadata, width: int | None, window: int | None
) -> None:
    step = metadata.step
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.dim() != 4:
        raise InvalidArgumentError(
            f"attn_mask must be a bool tensor (batch, 1, width, width), not {shown(mask)}."
        )
    width = width or mask.shape[-1]
    if mask.shape != (step.batch, 1, width, width) or width < step.max_query_len:
        raise InvalidArgumentError(
            f"attn_mask has shape {tuple(mask.shape)}, wanted ({step.batch}, 1, {width}, {width}) "
            f"with a width of {step.max_query_len} or more."
        )
    if not paged_tensors.is_causal(mask, step, window):
        raise InvalidArgumentError(
            "attn_mask is not the causal mask of sequences padded on the right, with lengths "
            f"{shown(metadata.seq_lens)} and window {window}.",
            hint="Attention follows the metadata; a window is given to the backend.",
        )
