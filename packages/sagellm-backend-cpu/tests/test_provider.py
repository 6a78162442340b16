"""The CPU provider as its users meet it: the first example, what it claims, how it is set up."""

import dataclasses
import json

import pytest
import torch

from sagellm_backend import CPUBackendProvider, DType, create_cpu_backend, get_provider
from sagellm_backend.base import BackendProvider
from sagellm_backend.capability import CONTRACT_VERSION, Feature, KernelKind, Requirements
from sagellm_backend.config import ProviderConfig
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, OperatorNotFoundError
from sagellm_backend.kv import KVLayout
from sagellm_backend.ops import OPERATIONS


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


def test_the_example_of_the_first_readme_runs_as_written():
    from sagellm_backend import CPUBackendProvider, DType

    backend = CPUBackendProvider()
    backend.capability().supported_dtypes  # noqa: B018 - as written
    block = backend.kv_block_alloc(128, DType.FP16)

    assert DType.FP16 in backend.capability().supported_dtypes
    assert (block.num_tokens, block.dtype) == (128, DType.FP16)
    assert backend.memory_stats()["kv_bytes"] >= 128 * 2 * 8 * 128 * 2
    backend.kv_block_free(block)


class TestCapability:
    def test_it_names_the_machine(self, backend):
        claimed = backend.capability()
        assert (claimed.provider, claimed.device_type, claimed.array_framework) == (
            "cpu",
            "cpu",
            "torch",
        )
        assert claimed.contract == CONTRACT_VERSION
        assert claimed.device_name
        assert claimed.versions["torch"] == torch.__version__
        assert 0 < claimed.available_memory_bytes <= claimed.total_memory_bytes
        assert claimed.total_memory_bytes == backend.memory_stats()["device_total_bytes"]
        assert claimed.max_memory_mb == claimed.total_memory_bytes >> 20
        assert [device.index for device in claimed.devices] == [0]
        assert claimed.devices[0].total_memory_bytes == claimed.total_memory_bytes

    def test_the_fields_of_protocol_agree_with_the_features(self, backend):
        claimed = backend.capability()
        assert claimed.has_stream == claimed.supports_feature(Feature.STREAM)
        assert claimed.has_event == claimed.supports_feature(Feature.EVENT)
        assert claimed.has_graph_exec == claimed.supports_feature(Feature.GRAPH)
        assert claimed.has_collective == claimed.supports_feature(Feature.COLLECTIVE)
        assert claimed.has_kv_block_migrate == claimed.supports_feature(Feature.KV_PEER_COPY)

    def test_every_declared_feature_is_there_and_every_other_refused(self, backend):
        uses = {
            Feature.STREAM: backend.create_stream,
            Feature.EVENT: backend.create_event,
            Feature.GRAPH: lambda: backend.capture(lambda: None, {}),
            Feature.KV_POOL: lambda: backend.kv_pool(ProviderConfig().kv_layout, 1),
            Feature.KV_HOST_POOL: lambda: backend.kv_pool(ProviderConfig().kv_layout, 1, "host"),
            Feature.DLPACK: lambda: torch.from_dlpack(backend.empty(1, "fp32")),
        }
        for feature, use in uses.items():
            if feature in backend.capability().features:
                use()
            else:
                with pytest.raises(CapabilityError, match=feature.value):
                    use()

    def test_every_declared_operation_resolves_and_no_other_does(self, backend):
        claimed = backend.capability()
        assert set(claimed.operations) <= set(OPERATIONS)
        for name, dtypes in claimed.operations.items():
            for dtype in DType:
                assert (dtype in dtypes) == (backend.supports(name, dtype=dtype) == [])
        for name in set(OPERATIONS) - set(claimed.operations):
            with pytest.raises((CapabilityError, OperatorNotFoundError)):
                backend.get_kernel(name)

    def test_every_declared_kind_has_an_operation(self, backend):
        claimed = backend.capability()
        kinds = {OPERATIONS[name].kind for name in claimed.operations}
        assert set(claimed.supported_kernels) == kinds
        assert all(claimed.supports_kernel(kind) == (kind in kinds) for kind in KernelKind)

    def test_an_operation_without_a_kernel_is_not_claimed(self):
        class Poor(CPUBackendProvider):
            def _register_kernels(self, table):
                table.register("linear", torch.nn.functional.linear, name="torch")

        claimed = Poor().capability()
        assert list(claimed.operations) == ["linear"]
        assert claimed.supported_kernels == [KernelKind.MATMUL]

    def test_arrays_of_every_declared_dtype_can_be_made(self, backend):
        for dtype in backend.capability().supported_dtypes:
            assert DType.parse(backend.empty(1, dtype).dtype) is dtype

    def test_pools_of_every_declared_kind_can_be_made_and_no_others(self, backend):
        kv = backend.capability().kv
        for dtype in DType:
            for order in ("NHD", "HND"):
                for packing in ("separate", "packed"):
                    layout = KVLayout(1, 2, 64, 16, dtype, order, packing)
                    offered = dtype in kv.dtypes and order in kv.orders and packing in kv.packings
                    if offered:
                        backend.kv_pool(layout, 1).close()
                    else:
                        with pytest.raises(CapabilityError):
                            backend.kv_pool(layout, 1)

    def test_changing_a_descriptor_changes_nothing_else(self, backend):
        before = stable(backend)
        claimed = backend.capability()
        claimed.supported_dtypes.clear()
        claimed.supported_kernels.append("mine")
        claimed.supported_collectives.clear()
        claimed.operations.clear()
        claimed.versions["torch"] = "0"
        claimed.devices[0].facts.clear()
        claimed.kv = None
        claimed.has_stream = False
        assert stable(backend) == before
        assert stable(CPUBackendProvider()) == before

    def test_it_is_plain_data(self, backend):
        assert json.loads(json.dumps(backend.capability().to_dict()))["provider"] == "cpu"

    def test_requirements_are_met_or_listed_all_at_once(self, backend):
        claimed = backend.capability()
        claimed.require(Requirements(dtypes=(DType.BF16,), operations=("attention", "linear")))
        with pytest.raises(
            CapabilityError, match=r"no fp8 arrays.*no feature kv_peer_copy.*no operation x"
        ):
            claimed.require(
                Requirements(
                    dtypes=(DType.FP8,), features=(Feature.KV_PEER_COPY,), operations=("x",)
                )
            )


def stable(backend):
    """The descriptor without the figure that the machine moves."""
    data = backend.capability().to_dict()
    del data["available_memory_bytes"]
    return data


class TestSetup:
    @pytest.mark.parametrize("config", [None, {}, {"device": 0}, ProviderConfig()], ids=repr)
    def test_every_form_of_settings_makes_a_provider(self, config):
        backend = CPUBackendProvider(config)
        assert isinstance(backend, BackendProvider)
        assert backend.config == ProviderConfig()
        assert backend.device == "cpu"

    def test_it_is_found_by_name(self):
        assert type(get_provider("cpu")) is CPUBackendProvider
        assert type(create_cpu_backend({"kv_blocks": 3})) is CPUBackendProvider

    def test_every_call_makes_a_new_one(self):
        assert get_provider("cpu") is not get_provider("cpu")

    def test_a_device_that_is_not_there_is_refused_with_the_number(self):
        with pytest.raises(InvalidArgumentError, match="Device 1 does not exist.*has 1") as caught:
            CPUBackendProvider({"device": 1})
        assert caught.value.numbers == {"requested": 1, "devices": 1}

    def test_bad_settings_are_refused_before_anything_is_made(self):
        for config in (5, {"devices": 1}, {"memory_limit": 0}, {"fallback": "loud"}):
            with pytest.raises(InvalidArgumentError):
                CPUBackendProvider(config)
        with pytest.raises(OperatorNotFoundError, match="rms_nrom"):
            CPUBackendProvider({"fallback": {"rms_nrom": "warn"}})

    def test_the_default_pool_follows_the_settings(self):
        layout = dataclasses.replace(ProviderConfig().kv_layout, num_layers=3, block_size=32)
        backend = CPUBackendProvider({"kv_layout": layout, "kv_blocks": 5})
        backend.kv_block_alloc(33, DType.FP16)
        stats = backend.memory_stats()
        assert stats["kv_bytes"] == 2 * layout.page_bytes
        assert stats["reserved_bytes"] == 5 * layout.page_bytes

    def test_a_default_pool_that_no_kernel_can_read_is_refused(self):
        layout = dataclasses.replace(ProviderConfig().kv_layout, index_dtype=DType.INT64)
        backend = CPUBackendProvider({"kv_layout": layout})
        before = backend.memory_stats()["reserved_bytes"]
        with pytest.raises(CapabilityError, match="index_dtype int64"):
            backend.kv_block_alloc(1, DType.FP16)
        assert backend.memory_stats()["reserved_bytes"] == before

    def test_without_a_limit_all_memory_of_the_machine_is_offered(self, backend):
        stats = backend.memory_stats()
        assert stats["limit_bytes"] == stats["device_total_bytes"]


class TestAlone:
    """Collectives of Protocol v0.1 without a group."""

    def test_a_reduction_changes_nothing(self, backend):
        tensor = torch.arange(4.0)
        assert backend.all_reduce(tensor, "sum") is None
        assert tensor.tolist() == [0, 1, 2, 3]

    def test_a_gathering_stacks_the_one_array(self, backend):
        gathered = backend.all_gather(torch.ones(2, 3))
        assert tuple(gathered.shape) == (1, 2, 3)

    @pytest.mark.parametrize("op", [None, "mean", 3, [], "SUM"])
    def test_reductions_that_are_none_are_refused(self, backend, op):
        with pytest.raises(InvalidArgumentError, match="is not a reduction"):
            backend.all_reduce(torch.ones(1), op)


def test_closing_twice_is_allowed_and_queries_go_on():
    backend = CPUBackendProvider()
    backend.close()
    backend.close()
    assert backend.capability().provider == "cpu"
    assert backend.memory_stats()["allocated_bytes"] == 0
    assert backend.get_kernel("softmax")(torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]
