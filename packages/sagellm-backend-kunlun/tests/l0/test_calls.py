"""Every function of Paddle that the provider calls is there, with arguments that fit."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from paddle_calls import calls_in, fits, named_in, resolve, signatures_of

from sagellm_backend.kunlun import spec

SOURCES = sorted(Path(spec.__file__).parent.glob("*.py"))
ONLY_WITH_XPU = "paddle.base.core.ProcessGroupBKCL"
"""What the CPU build of Paddle does not have."""


def exists(name):
    try:
        resolve(name)
    except AttributeError:
        return False
    return True


def test_every_name_of_paddle_exists():
    names = {name for path in SOURCES for name, _ in named_in(path)}
    assert len(names) > 80
    assert {name for name in names if not exists(name)} == {
        ONLY_WITH_XPU,
        f"{ONLY_WITH_XPU}.create",
    }


def test_every_call_fits_a_signature():
    checked = 0
    for path in SOURCES:
        for name, call in calls_in(path):
            if name.startswith(ONLY_WITH_XPU):
                continue
            signatures = signatures_of(resolve(name))
            told = " or ".join(map(str, signatures))
            assert signatures, f"{path.name}:{call.lineno}: nothing is known of {name}"
            assert fits(call, signatures), (
                f"{path.name}:{call.lineno}: {ast.unparse(call)} does not fit {name}{told}"
            )
            checked += 1
    assert checked > 200


def test_what_the_cpu_build_lacks_is_called_as_paddle_itself_calls_it():
    ours = [call for path in SOURCES for name, call in calls_in(path) if ONLY_WITH_XPU in name]
    paddles = Path(import_module("paddle.distributed.collective").__file__)
    theirs = [
        node
        for node in ast.walk(ast.parse(paddles.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and "ProcessGroupBKCL.create" in ast.unparse(node.func)
    ]
    assert ours
    assert {len(call.args) for call in ours} == {len(call.args) for call in theirs}
    assert not any(call.keywords for call in ours)


@pytest.mark.parametrize(
    ("written", "fit"),
    [
        ("paddle.device.xpu.memory_total(0)", True),
        ("paddle.device.xpu.memory_total(0, 1)", False),
        ("paddle.device.xpu.memory_used(index=0)", False),
        ("paddle.matmul(a, b, transpose_y=True)", True),
        ("paddle.matmul(a, b, transpose_z=True)", False),
        ("paddle.base.core.TCPStore(host, port, True, 2)", True),
        ("paddle.base.core.TCPStore(host, port, True)", False),
        ("paddle.base.core.ProcessGroup.send(tensor, 1, False)", True),
        ("paddle.base.core.ProcessGroup.send(tensor, 1, False, 3)", False),
        ("paddle.base.core._xpu_set_current_stream()", False),
        ("paddle.XPUPlace(0)", True),
        ("paddle.XPUPlace()", False),
    ],
)
def test_a_call_that_does_not_fit_is_found(written, fit, tmp_path):
    path = tmp_path / "written.py"
    path.write_text(f"import paddle\n{written}\n")
    ((name, call),) = calls_in(path)
    assert fits(call, signatures_of(resolve(name))) == fit


def test_a_name_that_paddle_does_not_have_is_found(tmp_path):
    path = tmp_path / "written.py"
    path.write_text("from paddle.device import xpu\nxpu.memory_left(0)\n")
    ((name, _),) = named_in(path)
    assert name == "paddle.device.xpu.memory_left"
    assert not exists(name)
