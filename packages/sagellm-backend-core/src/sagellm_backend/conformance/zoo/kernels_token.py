"""Faults of sampling, and of writing keys and values into the cache."""

from __future__ import annotations

import numpy as np

from sagellm_backend.conformance.zoo.member import kernel_fault
from sagellm_backend.ops.cases import Array, f64
from sagellm_backend.ops.kv_write import kv_write
from sagellm_backend.ops.sampling import greedy_sample, sample

_GREEDY = ("kernels.greedy_sample",)
_SAMPLE = ("kernels.sample",)
_KV_WRITE = ("kernels.kv_write",)


@kernel_fault("greedy_sample", "Among equal logits the highest id wins", kills=_GREEDY)
def greedy_takes_last_of_equals(logits: Array) -> Array:
    found: Array = logits.shape[-1] - 1 - np.argmax(f64(logits)[..., ::-1], axis=-1)
    return found


@kernel_fault("greedy_sample", "Greedy sampling compares logits in bf16", kills=_GREEDY)
def greedy_compares_coarsely(logits: Array) -> Array:
    words = logits.astype(np.float32).view(np.uint32) & np.uint32(0xFFFC0000)
    return greedy_sample(words.view(np.float32))


@kernel_fault("greedy_sample", "Greedy sampling takes a ban for a high logit", kills=_GREEDY)
def greedy_takes_banned_ids(logits: Array) -> Array:
    return greedy_sample(np.where(np.isneginf(f64(logits)), 0.0, f64(logits)))


@kernel_fault("sample", "A draw ignores the caller's random number", kills=_SAMPLE)
def sample_draws_its_own(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    own = np.full_like(uniform, 0.5)
    return sample(logits, own, temperature, top_k, top_p)


@kernel_fault(
    "sample",
    "A draw ignores the temperature, but for 0",
    kills=(*_SAMPLE, "kernels.draws_follow_the_distribution"),
)
def sample_ignores_temperature(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    return sample(logits, uniform, (temperature > 0).astype(np.float32), top_k, top_p)


@kernel_fault(
    "sample",
    "A temperature of 0 draws at random",
    kills=(*_SAMPLE, "kernels.edges_of_sampling"),
)
def sample_is_never_greedy(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    warm = np.where(temperature == 0, 1, temperature).astype(np.float32)
    return sample(logits, uniform, warm, top_k, top_p)


@kernel_fault("sample", "top_k keeps one more than asked", kills=_SAMPLE)
def sample_keeps_one_more(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    return sample(logits, uniform, temperature, np.where(top_k > 0, top_k + 1, 0), top_p)


@kernel_fault("sample", "top_p is ignored", kills=_SAMPLE)
def sample_ignores_top_p(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    return sample(logits, uniform, temperature, top_k, np.ones_like(top_p))


@kernel_fault(
    "sample",
    "Among equal logits the highest id comes first",
    kills=("kernels.equal_logits_rank_by_id",),
)
def sample_ranks_backwards(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    turned = np.ascontiguousarray(logits[:, ::-1])
    found: Array = logits.shape[-1] - 1 - sample(turned, uniform, temperature, top_k, top_p)
    return found


@kernel_fault(
    "sample",
    "A ban is a logit of -100",
    kills=("kernels.banned_ids_are_never_drawn",),
)
def sample_clips_bans(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    clipped = np.maximum(logits, np.asarray(-100, logits.dtype))
    return sample(clipped, uniform, temperature, top_k, top_p)


@kernel_fault("sample", "The settings of the first row serve for all", kills=_SAMPLE)
def sample_reads_first_settings(
    logits: Array, uniform: Array, temperature: Array, top_k: Array, top_p: Array
) -> Array:
    first = [np.repeat(item[:1], len(item)) for item in (temperature, top_k, top_p)]
    return sample(logits, uniform, *first)


@kernel_fault("kv_write", "A token of slot -1 is written to the last slot", kills=_KV_WRITE)
def kv_write_takes_minus_one(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None:
    count = key_cache.shape[0] * key_cache.shape[1]
    kv_write(key, value, key_cache, value_cache, np.where(slots < 0, count - 1, slots))


@kernel_fault("kv_write", "Keys are written into both caches", kills=_KV_WRITE)
def kv_write_puts_keys_twice(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None:
    del value
    kv_write(key, key, key_cache, value_cache, slots)


@kernel_fault("kv_write", "Writing clears the rest of a touched block", kills=_KV_WRITE)
def kv_write_clears_blocks(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None:
    touched = slots[slots >= 0] // key_cache.shape[1]
    key_cache[touched], value_cache[touched] = 0, 0
    kv_write(key, value, key_cache, value_cache, slots)


@kernel_fault("kv_write", "The token behind a skipped one is skipped too", kills=_KV_WRITE)
def kv_write_skips_too_much(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None:
    shorter = slots.copy()
    shorter[1:][slots[:-1] < 0] = -1
    kv_write(key, value, key_cache, value_cache, shorter)


@kernel_fault(
    "kv_write",
    "Caches in HND order are written as if they were NHD",
    kills=("kernels.kv_write_into_a_pool", "kv.kernels_write_one_slot_for_each_token"),
)
def kv_write_ignores_strides(
    key: Array, value: Array, key_cache: Array, value_cache: Array, slots: Array
) -> None:
    caches = []
    for cache in (key_cache, value_cache):
        swapped = cache.swapaxes(1, 2)
        plain = not cache.flags.c_contiguous and swapped.flags.c_contiguous
        caches.append(swapped.reshape(cache.shape) if plain else cache)
    kv_write(key, value, caches[0], caches[1], slots)
