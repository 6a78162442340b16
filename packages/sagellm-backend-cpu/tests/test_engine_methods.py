"""What the published engine asks of a torch provider besides the contract."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

import pytest
import torch
from torch.nn import functional

from sagellm_backend import get_provider
from sagellm_backend.dtype_conversion import _decode_fp8_e4m3_torch
from sagellm_backend.errors import InvalidArgumentError


class Operator(str, Enum):
    LINEAR = "linear"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    RMSNORM = "rmsnorm"
    LAYERNORM = "layernorm"
    SILU = "silu"
    GELU = "gelu"
    RELU = "relu"


@dataclass
class Constraint:
    device_type: str


class Registry:
    def __init__(self):
        self.kernels = {}

    def register_kernel(
        self,
        operator_type: Operator,
        kernel_impl: object,
        constraint: Constraint,
        priority: int = 0,
        description: str = "",
    ) -> None:
        assert constraint == Constraint("cpu")
        assert operator_type not in self.kernels
        self.kernels[operator_type] = kernel_impl


@pytest.fixture
def provider():
    with get_provider("cpu") as provider:
        yield provider


@pytest.fixture
def kernels(provider):
    registry = Registry()
    provider.register_kernels(registry)
    return registry.kernels


def transformers_norm(x, weight, eps):
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def test_every_operator_is_registered(kernels):
    assert set(kernels) == set(Operator)


def test_calls_are_positional(kernels):
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    ids, row = torch.tensor([[1, 4, 0]]), torch.randn(8)
    torch.testing.assert_close(kernels["linear"](x, weight, None), functional.linear(x, weight))
    torch.testing.assert_close(
        kernels["linear"](x, weight, bias), functional.linear(x, weight, bias)
    )
    torch.testing.assert_close(kernels["embedding"](ids, weight), weight[ids])
    torch.testing.assert_close(kernels["rmsnorm"](x, row, 1e-5), transformers_norm(x, row, 1e-5))
    torch.testing.assert_close(
        kernels["layernorm"](x, row, row, 1e-5), functional.layer_norm(x, (8,), row, row, 1e-5)
    )
    for name in ("silu", "gelu", "relu"):
        torch.testing.assert_close(kernels[name](x), getattr(functional, name)(x))


@pytest.mark.parametrize(
    "name", ["linear", "embedding", "rmsnorm", "layernorm", "silu", "gelu", "relu"]
)
def test_get_kernel_has_the_engines_names(provider, name):
    assert callable(provider.get_kernel(name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_norms_have_the_order_of_transformers(kernels, dtype):
    x, weight = torch.randn(4, 64, 33).to(dtype) * 3, torch.randn(33).to(dtype)
    found, wanted = kernels["rmsnorm"](x, weight, 1e-6), transformers_norm(x, weight, 1e-6)
    torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert (found != wanted).double().mean() <= 1 / 500  # its sums are in another order


def test_one_large_activation_leaves_the_row(kernels):
    x = torch.ones(1, 64, dtype=torch.float16)
    x[0, 0] = 300.0  # its square is beyond fp16
    found = kernels["rmsnorm"](x, torch.ones(64, dtype=torch.float16), 1e-6)
    assert torch.equal(found, transformers_norm(x, torch.ones(64, dtype=torch.float16), 1e-6))
    assert found.isfinite().all()
    assert found.all()


def test_a_norm_with_a_wider_weight(kernels):
    x, weight = torch.randn(2, 8).bfloat16(), torch.randn(8)
    found = kernels["rmsnorm"](x, weight, 1e-6)
    assert found.dtype is torch.float32
    assert torch.equal(found, transformers_norm(x, weight, 1e-6))


def test_inputs_of_any_strides_under_inference_mode(kernels):
    with torch.inference_mode():
        x = torch.randn(3, 4, 16)[:, -1:, ::2]
        ids = torch.tensor([[1, 9, 2, 9], [3, 9, 0, 9]])[:, ::2]
        weight = torch.randn(5, 8)
        torch.testing.assert_close(
            kernels["linear"](x, weight, None), functional.linear(x.contiguous(), weight)
        )
        assert torch.equal(kernels["embedding"](ids, weight), weight[ids])
        torch.testing.assert_close(
            kernels["rmsnorm"](x, weight[0], 1e-6), transformers_norm(x, weight[0], 1e-6)
        )


def test_kernels_are_for_all_threads(kernels):
    x, weight = torch.randn(8, 32), torch.randn(32, 32)
    wanted, wrong = functional.linear(x, weight), []

    def work():
        found = [kernels["linear"](x, weight, None) for _ in range(50)]
        wrong.extend(item for item in found if not torch.allclose(item, wanted, atol=1e-5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("registry", [None, object(), type("R", (), {"register_kernel": print})()])
def test_what_is_no_registry_is_refused(provider, registry):
    with pytest.raises(InvalidArgumentError, match="no operator registry"):
        provider.register_kernels(registry)


def test_attention_is_the_engines_by_default(provider):
    default = provider.get_attention_backend()
    assert default.name == "engine"
    assert default.supports_paged_attention is False
    assert provider.get_supported_attention_backends() == ["engine", "paged"]
    paged = provider.get_attention_backend("paged")
    assert paged.supports_paged_attention is True
    assert paged.provider is provider
    with pytest.raises(InvalidArgumentError, match="'nope'.*engine, paged"):
        provider.get_attention_backend("nope")


def test_a_user_may_replace_an_activation(provider):
    provider.register_kernel("silu", lambda _: "mine")
    assert provider.get_kernel("silu")(torch.ones(1)) == "mine"


def test_tensors_go_to_the_device(provider):
    tensor = torch.ones(2)
    assert provider.get_torch_device() == torch.device("cpu")
    assert provider.to_device(tensor) is tensor
    with pytest.raises(InvalidArgumentError, match="from_numpy"):
        provider.to_device([1.0])


def test_every_fp8_code_is_decoded():
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16).T
    wanted = codes.contiguous().view(torch.float8_e4m3fn).float()
    found = _decode_fp8_e4m3_torch(codes)
    assert found.dtype is torch.float32
    assert torch.equal(found.nan_to_num(-7), wanted.nan_to_num(-7))
    assert int(found.isnan().sum()) == 2


def test_the_module_of_protocol_v01():
    from sagellm_backend.cpu.provider import CPUBackendProvider as Home
    from sagellm_backend.providers.cpu import CPUBackendProvider, create_cpu_backend

    assert CPUBackendProvider is Home
    assert isinstance(create_cpu_backend(), Home)
