"""Device names, and what the file system tells of accelerators."""

from __future__ import annotations

import os

import pytest

from sagellm_backend.devices import (
    DeviceInfo,
    Sighting,
    format_device_str,
    parse_device_str,
    seen_accelerators,
    sighting_of,
    visible_devices,
)
from sagellm_backend.errors import InvalidArgumentError


def touch(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cpu", ("cpu", None)),
        ("cuda:1", ("cuda", 1)),
        ("npu:0", ("npu", 0)),
        ("custom_cpu:12", ("custom_cpu", 12)),
    ],
)
def test_device_strings_go_both_ways(text, parts):
    assert parse_device_str(text) == parts
    assert format_device_str(*parts) == text


@pytest.mark.parametrize(
    "text",
    ["", "cuda:", ":0", "cuda:-1", "cuda:01", "cuda:1:2", "CUDA", "cuda 0", "cuda:x", None, 3],
)
def test_what_is_no_device_is_refused(text):
    with pytest.raises(InvalidArgumentError, match="is not a device"):
        parse_device_str(text)


@pytest.mark.parametrize(
    ("kind", "index"), [("", 0), ("cuda", -1), ("cuda:0", 1), ("cuda", 100000)]
)
def test_no_bad_device_string_is_made(kind, index):
    with pytest.raises(InvalidArgumentError):
        format_device_str(kind, index)


def test_an_empty_machine_has_no_accelerators(tmp_path):
    assert seen_accelerators(tmp_path) == ()
    assert seen_accelerators(tmp_path / "missing") == ()


def test_nodes_are_counted_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, "dev/nvidia10", "dev/nvidia2", "dev/nvidiactl", "dev/nvidia-uvm")
    (seen,) = seen_accelerators(tmp_path)
    assert seen == Sighting("cuda", 2, "/dev/nvidia2", nodes=("/dev/nvidia2", "/dev/nvidia10"))


def test_each_vendor_is_told_by_its_nodes_in_order_of_priority(tmp_path):
    touch(tmp_path, "dev/xpu0", "dev/xpuctrl", "dev/davinci0", "dev/davinci_manager", "dev/nvidia0")
    touch(tmp_path, "dev/kfd", "opt/hyhal/x", "dev/dri/renderD128", "dev/dri/renderD129")
    seen = seen_accelerators(tmp_path)
    assert [(s.backend, s.count) for s in seen] == [
        ("cuda", 1),
        ("dcu", 2),
        ("ascend", 1),
        ("kunlun", 1),
    ]
    assert [s.package.rpartition("-")[2] for s in seen] == ["cuda", "cuda", "ascend", "kunlun"]
    assert sighting_of("ascend", tmp_path).evidence == "/dev/davinci0"
    assert sighting_of("cpu", tmp_path) is None


def test_an_amd_card_is_no_dcu(tmp_path):
    touch(tmp_path, "dev/kfd", "dev/dri/renderD128")
    assert seen_accelerators(tmp_path) == ()


def test_a_dcu_without_render_nodes_is_still_one(tmp_path):
    touch(tmp_path, "dev/kfd", "opt/hyhal/x")
    assert sighting_of("dcu", tmp_path).count == 1


def test_wsl_shows_cuda_by_its_library_unless_there_are_nodes(tmp_path):
    touch(tmp_path, "usr/lib/wsl/lib/libcuda.so.1")
    (seen,) = seen_accelerators(tmp_path)
    assert (seen.backend, seen.nodes) == ("cuda", ())
    assert seen.denied(tmp_path) is None
    touch(tmp_path, "dev/nvidia0")
    (seen,) = seen_accelerators(tmp_path)
    assert seen.evidence == "/dev/nvidia0"


def test_a_node_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "dev/nvidia0", "dev/nvidia1")
    seen = sighting_of("cuda", tmp_path)
    assert seen.denied(tmp_path) is None
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "nvidia1" not in str(path) and real(path, mode)
    )
    assert seen.denied(tmp_path) == "/dev/nvidia1"


CARDS = tuple(DeviceInfo(i, f"card {i}", facts={"uuid": f"GPU-{i}a"}) for i in range(4))


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("3, 1", [3, 1]),
        ("2,-1,0", [2]),
        ("1,9,0", [1]),
        ("GPU-2", [2]),
        ("GPU-1a,0", [1, 0]),
        ("MIG-1234", [0, 1, 2, 3]),
        ("GPU-77", [0, 1, 2, 3]),
    ],
)
def test_visible_devices_are_read_as_drivers_read_them(selection, chosen):
    visible = visible_devices(CARDS, selection)
    assert [device.name for device in visible] == [f"card {index}" for index in chosen]
    assert [device.index for device in visible] == list(range(len(chosen)))
