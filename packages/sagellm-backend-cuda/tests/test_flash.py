"""When flash attention is chosen, what is said where it is not, and how it is called."""

from __future__ import annotations

import pytest
import torch
from fake_cuda.tensors import wide
from torch._subclasses.fake_tensor import FakeTensorMode

from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.cuda import attention as cuda_attention
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

pytestmark = pytest.mark.usefixtures("guard", "pageable")


class TestFlash:
    """When flash attention is chosen, and what is said where it is not."""

    @pytest.mark.parametrize(
        ("capability", "statics", "said"),
        [
            ((8, 0), {}, None),
            ((9, 0), {"dtype": DType.BF16, "head_dim": 128, "block_size": 256}, None),
            ((9, 0), {"block_size": 512}, None),
            ((9, 0), {"block_size": 16}, "blocks of 16 tokens"),
            ((7, 5), {}, "needs compute capability 8.0, the card has 7.5"),
            ((9, 0), {"dtype": DType.FP32}, "not fp32"),
            ((9, 0), {"head_dim": 512}, "head_dim 512"),
            ((9, 0), {"head_dim": 36}, "head_dim 36"),
            ((9, 0), {"softcap": 30.0}, "no softcap"),
            ((9, 0), {"has_sinks": True}, "no sinks"),
        ],
    )
    def test_its_rules(self, capability, statics, said):
        reasons = cuda_attention.shortfalls(capability, **statics)
        assert reasons == [] if said is None else said in " ".join(reasons)

    @pytest.mark.parametrize(
        ("impl", "capability", "size", "taken"),
        [
            ("FA3", (9, 0), 64, True),
            ("FA3", (9, 0), 16, False),
            ("FA3", (9, 0), 512, False),
            ("FA4", (10, 0), 128, True),
            ("FA4", (9, 0), 128, False),
        ],
    )
    def test_other_implementations_take_other_pages(
        self, monkeypatch, impl, capability, size, taken
    ):
        monkeypatch.setattr(cuda_attention, "_active", lambda: impl)
        assert (cuda_attention.shortfalls(capability, block_size=size) == []) is taken

    def test_explain_names_the_reason(self, provider):
        wanted = "flash" if provider.name == "cuda" else "torch"
        statics = {"dtype": "bf16", "head_dim": 128, "block_size": 256}
        assert provider.explain("attention", **statics).chosen == wanted
        assert provider.explain("attention", **statics, softcap=2.0).chosen == "torch"

    @pytest.mark.parametrize(
        ("query", "kv", "causal", "window", "pair"),
        [
            ([1, 1], [9, 5], True, None, (-1, -1)),
            ([1, 1], [9, 5], True, 4, (3, -1)),
            ([2, 1], [9, 5], True, None, (-1, 0)),
            ([2, 1], [9, 5], False, None, (-1, -1)),
            ([2, 1], [9, 5], True, 4, (3, 0)),
            ([2, 1], [9, 5], False, 4, (3, -1)),
        ],
    )
    def test_windows_are_said_in_its_words(self, monkeypatch, query, kv, causal, window, pair):
        seen = []

        def varlen(q, *args, **options):
            seen.append((args, options))
            return q

        monkeypatch.setattr(cuda_attention, "_varlen_attn", varlen)
        with FakeTensorMode(allow_non_fake_inputs=True):
            metadata = AttentionMetadata.build(query, kv, [[1], [0]], 256)
            q, cache = wide((sum(query), 4, 8)), wide((2, 256, 2, 8))
            kernel = cuda_attention.make((9, 0))
            kernel(q, cache, cache, metadata, scale=0.5, causal=causal, window=window)
        ((args, options),) = seen
        assert options["window_size"] == pair
        assert options["enable_gqa"]
        assert options["num_splits"] == 1
        assert args[4:] == (max(query), 256)

    @pytest.mark.parametrize(("impl", "given"), [(None, True), ("FA3", False)])
    def test_cumulative_lengths_of_pages_go_to_fa2_only(self, monkeypatch, impl, given):
        seen = []
        monkeypatch.setattr(cuda_attention, "_active", lambda: impl)
        monkeypatch.setattr(
            cuda_attention, "_varlen_attn", lambda *args, **_: seen.append(args) or args[0]
        )
        with FakeTensorMode(allow_non_fake_inputs=True):
            metadata = AttentionMetadata.build([1], [9], [[0]], 256)
            cache = wide((2, 256, 2, 8))
            cuda_attention.make((9, 0))(wide((1, 4, 8)), cache, cache, metadata, scale=0.5)
        assert (seen[0][4] is not None) is given

    @pytest.mark.parametrize("moved", [0, 1, 2])
    def test_caches_of_another_device_are_refused(self, moved):
        with FakeTensorMode(allow_non_fake_inputs=True):
            metadata = AttentionMetadata.build([1], [9], [[0]], 256)
            arrays = [wide((1, 4, 8)), wide((2, 256, 2, 8)), wide((2, 256, 2, 8))]
            arrays[moved] = torch.empty_like(arrays[moved], device="cuda:1")
            with pytest.raises(InvalidArgumentError, match="cuda:1"):
                cuda_attention.make((9, 0))(*arrays, metadata, scale=0.5)

    def test_host_tensors_are_refused(self):
        from sagellm_backend.torch_support.misuse import MisuseError

        host = torch.zeros(1, 2, 8)
        with pytest.raises(MisuseError):
            cuda_attention.make((9, 0))(host, host, host, AttentionMetadata.build([1]), scale=1.0)
