"""Checkpoints: which is found, what is read from one, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest

from sagellm_backend.conformance.checkpoint import NAME, VARIABLE, Checkpoint, locate
from sagellm_backend.conformance.safetensors import read_tensors
from sagellm_backend.conformance.zoo.stand_in import as_safetensors, stand_in, write_checkpoint
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path)
    return tmp_path


def change(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def sealed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_it_is_looked_for_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert locate() is None
    place = tmp_path / "sagellm-backend" / NAME
    place.mkdir(parents=True)
    assert locate() == place


def test_a_named_folder_comes_first_and_must_hold_one(monkeypatch, folder, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv(VARIABLE, str(folder))
    assert locate() == folder
    monkeypatch.setenv(VARIABLE, str(folder / "elsewhere"))
    with pytest.raises(InvalidArgumentError, match=VARIABLE):
        locate()


def test_weights_are_those_of_the_file_in_the_dtype_asked_for(folder):
    tensors = read_tensors(folder / "model.safetensors")
    weights = Checkpoint(folder).weights(DType.BF16)
    assert weights["head"] is weights["embed"]
    wanted = [tensors[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    np.testing.assert_array_equal(
        weights["1.gate_up"], np.concatenate(wanted).astype(ml_dtypes.bfloat16)
    )


def test_the_shape_is_that_of_the_config(folder):
    change(folder, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    shape = Checkpoint(folder).shape
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 16)
    assert shape.base == 5e5


def test_the_digest_is_of_shape_and_weights_whatever_their_order(folder):
    before, path = Checkpoint(folder).digest, folder / "model.safetensors"
    tensors = read_tensors(path)
    shuffled = as_safetensors({name: tensors[name] for name in reversed(tensors)})
    path.unlink()
    path.write_bytes(shuffled)
    assert Checkpoint(folder).digest == before
    change(folder, rms_norm_eps=1e-6)
    assert Checkpoint(folder).digest != before
    change(folder, rms_norm_eps=1e-5)
    path.write_bytes(shuffled[:-1] + bytes([shuffled[-1] ^ 1]))
    assert Checkpoint(folder).digest != before


def test_the_stand_in_is_made_once():
    assert stand_in() is stand_in()
    assert (stand_in() / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gemma"}, "gemma"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": "linear"}, "linear"),
        ({"tie_word_embeddings": False}, "lm_head"),
    ],
)
def test_other_models_are_refused(folder, changes, says):
    change(folder, **changes)
    with pytest.raises(InvalidArgumentError, match=says):
        Checkpoint(folder).weights(DType.FP32)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_is_none_is_refused(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(InvalidArgumentError, match="config.json"):
        Checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_refused_by_its_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(InvalidArgumentError, match=name):
        Checkpoint(folder)


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        (1 << 40).to_bytes(8, "little") + b"{}",
        b"\xff" * 8,
        sealed(b"{"),
        sealed(b"[" * 100_000),
        sealed([]),
        sealed({"x": None}, bytes(16)),
        sealed(entry(dtype="I64"), bytes(16)),
        sealed(entry(dtype=[]), bytes(16)),
        sealed(entry(), bytes(15)),
        sealed(entry(shape=[2, 3]), bytes(16)),
        sealed(entry(shape=[-2, -2]), bytes(16)),
        sealed(entry(shape=[2.0, 2]), bytes(16)),
        sealed(entry(shape=[1 << 62, 1 << 62]), bytes(16)),
        sealed(entry(data_offsets=[0]), bytes(16)),
        sealed(entry(data_offsets=[16, 0]), bytes(16)),
        sealed(entry(data_offsets=[-16, 0]), bytes(16)),
        sealed(entry(data_offsets=[8, 24]), bytes(16)),
        sealed(entry(data_offsets=[True, 17]), bytes(17)),
        sealed({"x": {}}),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="safetensors"):
        read_tensors(path)


def test_every_dtype_is_read_read_only(tmp_path):
    path = tmp_path / "model.safetensors"
    one = {"F32": np.float32(1.5), "F16": np.float16(-2), "BF16": ml_dtypes.bfloat16(3)}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in one.items():
        end = len(data) + value.nbytes
        header[name] = {"dtype": name, "shape": [], "data_offsets": [len(data), end]}
        data += value.tobytes()
    path.write_bytes(sealed(header, data))
    found = read_tensors(path)
    assert {name: array[()] for name, array in found.items()} == one
    assert not any(array.flags.writeable for array in found.values())
