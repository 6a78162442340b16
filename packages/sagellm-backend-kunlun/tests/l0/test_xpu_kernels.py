"""What is passed to the kernels that only XPUs have, by stand-ins that do what Paddle says of them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from sagellm_backend.dtypes import DType
from sagellm_backend.kunlun import kernels, provider, runtime, startup, xpu_kernels
from sagellm_backend.kunlun.provider import KunlunProvider
from sagellm_backend.ops.rope import rope_cache


class AsXpu(runtime.CpuRuntime):
    """The CPU, taken for an XPU by the provider."""

    simulated = False


def rotary(q, k=None, v=None, sin=None, cos=None, position_ids=None, use_neox_rotary_style=True):
    """As Paddle documents it: its neox pairs neighbours, else the two halves are paired."""
    assert sin.shape == cos.shape == [1, q.shape[1], 1, q.shape[3]]

    def turned(x):
        wide = x.numpy()
        if use_neox_rotary_style:
            other = np.stack([-wide[..., 1::2], wide[..., ::2]], -1).reshape(wide.shape)
        else:
            first, second = np.split(wide, 2, -1)
            other = np.concatenate([-second, first], -1)
        return paddle.to_tensor(wide * cos.numpy() + other * sin.numpy())

    return turned(q), turned(k), None


def rms(x, norm_weight, norm_bias, epsilon, begin_norm_axis=1, bias=None, residual=None):
    assert begin_norm_axis == x.ndim - 1
    total = x if residual is None else x + residual
    return kernels.rms_norm(total, norm_weight, epsilon), total


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    monkeypatch.setattr(xpu_kernels.fused, "fused_rotary_position_embedding", rotary)
    monkeypatch.setattr(xpu_kernels.fused, "fused_rms_norm", rms)


def tensors(*shapes):
    rng = np.random.default_rng(4)
    return [paddle.to_tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.numpy() - other.numpy()).max() < 1e-5


@pytest.mark.parametrize("size", [16, 24], ids=["whole heads", "parts of heads"])
@pytest.mark.parametrize("style", ["neox", "gptj"])
def test_rope_pairs_as_the_contract_says(style, size):
    q, k = tensors((5, 4, size), (5, 2, size))
    call = (q, k, paddle.to_tensor([3, 0, 9, 9, 1]), paddle.to_tensor(rope_cache(10, 16)))
    same(xpu_kernels.rope(*call, style=style), kernels.rope(*call, style=style))


@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_norms_and_swiglu(lead):
    x, residual, weight = tensors((*lead, 16), (*lead, 16), (16,))
    same([xpu_kernels.rms_norm(x, weight, 1e-6)], [kernels.rms_norm(x, weight, 1e-6)])
    found = xpu_kernels.add_rms_norm(x, residual, weight, 1e-6)
    same(found, kernels.add_rms_norm(x, residual, weight, 1e-6))
    same([xpu_kernels.silu_and_mul(x)], [kernels.silu_and_mul(x)])


def test_they_are_taken_on_xpus_only_and_in_their_dtypes_only(monkeypatch):
    monkeypatch.delenv(startup.EXACT_PRODUCTS, raising=False)
    plain = KunlunProvider(places=("cpu:0",))
    monkeypatch.setattr(provider, "runtime_of", lambda _: AsXpu())
    xpu = KunlunProvider(places=("cpu:0",))
    for name in xpu_kernels.KERNELS:
        assert plain.explain(name, dtype="fp32").chosen == "paddle"
        assert xpu.explain(name, dtype="fp32").chosen == "xpu"
        assert xpu.explain(name, dtype="bf16").chosen == ("paddle" if name == "rope" else "xpu")
        assert xpu.supports(name, dtype=DType.INT8)
