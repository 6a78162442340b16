"""The probe of ``cpu``: the processor, the memory one may use, and torch by its metadata."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_backend
from sagellm_backend import frameworks
from sagellm_backend.cpu import spec
from sagellm_backend.cpu.spec import SPEC, probe, processor
from sagellm_backend.dtypes import DType
from sagellm_backend.frameworks import TorchBuild
from sagellm_backend.spec import ProbeState

X86 = "processor\t: 0\nmodel name\t: Test CPU @ 2GHz\nflags\t\t: fpu avx2 avx512f amx_tile\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\n"


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def torch_is(monkeypatch):
    def be(build):
        monkeypatch.setattr(frameworks, "torch_build", lambda: build)

    be(TorchBuild("2.13.0+cpu"))
    return be


def test_the_spec():
    assert SPEC.names == ("cpu",)
    assert (SPEC.device_type, SPEC.priority, SPEC.array_framework) == ("cpu", 100, "torch")
    assert SPEC.automatic
    assert SPEC.contract == (1, 0)


def test_with_torch_the_cpu_is_available(torch_is):
    answer = probe()
    assert answer.state is ProbeState.AVAILABLE
    (device,) = answer.devices
    assert device.dtypes == (DType.FP32, DType.BF16, DType.FP16)
    assert device.name
    assert int(device.facts["cores"]) >= 1


def test_without_torch_it_is_broken_with_the_remedy(torch_is):
    torch_is(None)
    answer = probe()
    assert answer.state is ProbeState.BROKEN
    assert answer.reason == "torch is not installed"
    assert answer.remedy == "pip install torch --index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.3.1", "broken"), ("1.13.0", "broken"), ("2.4.0", "available"), ("2.13.0", "available")],
)
def test_an_old_torch_is_broken(torch_is, version, state):
    torch_is(TorchBuild(version))
    answer = probe()
    assert answer.state.value == state
    assert (version in answer.reason) == (state == "broken")


def test_a_torch_of_unknown_version_is_tried(torch_is):
    torch_is(TorchBuild("of unknown version"))
    assert probe().state is ProbeState.AVAILABLE


@pytest.mark.parametrize(
    ("text", "features"), [(X86, "avx2 avx512f amx_tile"), (ARM, "asimd sve"), ("", "")]
)
def test_the_processor_is_read_from_cpuinfo(tmp_path, text, features):
    write(tmp_path, "proc/cpuinfo", text)
    device = processor(tmp_path)
    assert device.facts["features"] == features
    assert (device.name == "Test CPU @ 2GHz") == (text == X86)
    assert device.name


def test_only_the_first_processor_counts(tmp_path):
    write(tmp_path, "proc/cpuinfo", X86 + "\nprocessor\t: 1\nmodel name\t: Other\n")
    assert processor(tmp_path).name == "Test CPU @ 2GHz"


def installed():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_without_control_groups_the_memory_is_the_machine_s(tmp_path):
    assert processor(tmp_path).total_memory_bytes == installed()


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "4096"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "1024", "a/memory.max": "4096"}, 1024),
        ("0::/\n", {"memory.max": "2048\n"}, 2048),
        ("4:memory:/a\n2:cpu:/x\n", {"memory/a/memory.limit_in_bytes": "512"}, 512),
        ("4:cpu,memory:/a\n", {"memory/memory.limit_in_bytes": "256"}, 256),
        ("0::/a\n", {"a/memory.max": str(2**63)}, None),
        ("nonsense\n", {}, None),
    ],
)
def test_a_control_group_limits_the_memory(tmp_path, groups, files, limit):
    write(tmp_path, "proc/self/cgroup", groups)
    for path, text in files.items():
        write(tmp_path, f"sys/fs/cgroup/{path}", text)
    expected = installed() if limit is None else limit
    assert processor(tmp_path).total_memory_bytes == expected


def test_probing_imports_no_torch():
    sources = {Path(sagellm_backend.__file__).parents[1], Path(spec.__file__).parents[2]}
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from sagellm_backend.cpu.spec import SPEC; SPEC.probe();"
            "print([m for m in ('torch', 'sagellm_backend.cpu.provider') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources))},
    )
    assert run.stdout.strip() == "[]"
