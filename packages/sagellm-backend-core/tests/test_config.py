"""Settings: what is accepted, and that everything else is refused before a provider exists."""

import dataclasses

import numpy as np
import pytest

from sagellm_backend.config import ProviderConfig
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kv import KVLayout

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=64, block_size=8, dtype=DType.BF16)


@pytest.mark.parametrize("config", [None, {}])
def test_nothing_given_is_the_default(config):
    assert ProviderConfig.parse(config) == ProviderConfig()


def test_settings_are_taken_as_they_are():
    settings = ProviderConfig(device=1)
    assert ProviderConfig.parse(settings) is settings


def test_a_mapping_sets_what_it_names_and_nothing_else():
    parsed = ProviderConfig.parse({"memory_limit": 1 << 20, "kv_layout": LAYOUT})
    wanted = dataclasses.replace(ProviderConfig(), memory_limit=1 << 20, kv_layout=LAYOUT)
    assert parsed == wanted


@pytest.mark.parametrize(
    "fallback", ["strict", "warn", "allow", {}, {"*": "warn", "rope": "allow"}]
)
def test_every_policy_is_accepted_alone_and_by_operation(fallback):
    assert ProviderConfig.parse({"fallback": fallback}).fallback == fallback


def test_unknown_keys_are_refused_with_the_known_ones():
    with pytest.raises(InvalidArgumentError, match=r"'devise', 5.*Known are device, memory_limit"):
        ProviderConfig.parse({"devise": 1, 5: 2})


@pytest.mark.parametrize("config", [5, "cpu", ["device"], [("device", 1)], True, object()])
def test_what_is_no_mapping_is_refused(config):
    with pytest.raises(InvalidArgumentError, match="config must be a Mapping"):
        ProviderConfig.parse(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{index}")
        for key, values in {
            "device": [None, True, 1.0, "0", -1, 1 << 20, float("nan"), 10**5000],
            "memory_limit": [True, 0, -1, 1e9, "1GB", 1 << 63, float("inf")],
            "kv_layout": [None, LAYOUT.to_json(), {}, KVLayout],
            "kv_blocks": [None, False, 0, -1, 1.0, 1 << 31, "8"],
            "fallback": [None, True, "loud", "STRICT", ["warn"], {"*": None}, {"rope": "loud"}],
            "reference_only": [None, 0, 1, "yes"],
        }.items()
        for index, value in enumerate(values)
    ],
)
def test_bad_values_are_refused_by_name(key, value):
    with pytest.raises(InvalidArgumentError, match=f"config '{key}'"):
        ProviderConfig.parse({key: value})


def test_integers_of_numpy_are_integers():
    assert ProviderConfig.parse({"kv_blocks": np.int64(7)}).kv_blocks == 7


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProviderConfig().device = 1
