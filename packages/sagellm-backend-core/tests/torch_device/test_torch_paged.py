"""The paged backend on a device that is not the CPU: the same answers, and nothing left behind."""

from __future__ import annotations

import numpy as np
import torch

from sagellm_backend import get_provider
from sagellm_backend.attention import PagedAttentionMetadataBuilder
from sagellm_backend.torch_support.paged_attention import PagedAttentionBackend


def steps(provider, device):
    """A padded prefill with a mask and a decode; what each gives, and the keys in the cache."""
    rng = np.random.default_rng(1)
    numbers = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4, 8), (6, 2, 8))]
    query, key = (provider.from_numpy(array) for array in numbers)
    cache = tuple(provider.from_numpy(np.zeros((4, 4, 2, 8), np.float32)) for _ in range(2))
    table = provider.from_numpy(np.array([[2, 1], [3, 0]]))
    place = np.arange(3)
    seen = (place <= place[:, None]) & (place < np.array([3, 2])[:, None])[:, None, None]
    mask = torch.from_numpy(seen).to(device)
    backend, builder = PagedAttentionBackend(provider), PagedAttentionMetadataBuilder(4)
    prompts = builder.build_prefill_metadata([3, 2], table)
    assert prompts.slot_mapping.device == prompts.block_tables.device == query.device
    first = backend.forward(query, key, key, prompts, cache, 0.3, mask)
    later = builder.build_decode_metadata([3, 2], table)
    second = backend.forward(query[:2], key[:2], key[:2], later, cache, 0.3)
    return [provider.to_numpy(array) for array in (first, second, cache[0])]


def test_another_device_gives_what_the_cpu_gives(backend):
    for ours, theirs in zip(
        steps(backend, backend.device), steps(get_provider("cpu"), "cpu"), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
