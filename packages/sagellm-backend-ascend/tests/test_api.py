"""Calls of ``torch.npu`` itself: each one fits the signature that torch_npu 2.13 has."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from sagellm_backend import torch_support
from sagellm_backend.ascend import startup

API = Path(__file__).parent / "l0" / "npu_l0" / "api.txt"
SOURCES = (Path(startup.__file__).parent, Path(torch_support.__file__).parent)
CALLED = re.compile(r"(?:self\.)?_?module\.(\w+)|(?:torch\.)?npu\.(\w+)")
OURS = {"allow_nz", "group_options"}  # what npu.py has beside


def signature(text):
    """A signature from its text, annotations left out."""
    arguments = ast.parse(f"def f{text}: ...").body[0].args
    for item in (*arguments.args, *arguments.kwonlyargs):
        item.annotation = None
    scope = {}
    exec(f"def f({ast.unparse(arguments)}): ...", scope)
    return inspect.signature(scope["f"])


LINES = [line for line in API.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
KNOWN = {line.partition("(")[0]: signature("(" + line.partition("(")[2]) for line in LINES}


def calls(folder):
    """(file, name, call) of every call that a folder's sources make on a device module."""
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = isinstance(node, ast.Call) and CALLED.fullmatch(ast.unparse(node.func))
            if found and (found[1] or found[2]) not in OURS:
                yield path.name, found[1] or found[2], node


CALLS = [item for folder in SOURCES for item in calls(folder)]


def bind(call, wanted):
    """Raise where a call does not fit a signature."""
    named = {item.arg: item.value for item in call.keywords if item.arg}  # and no ** of a mapping
    wanted.bind(*call.args, **named)


def test_every_call_on_the_module_fits():
    assert len(CALLS) > 25
    for file, name, call in CALLS:
        assert name in KNOWN, f"{file}: torch.npu.{name} is not in {API.name}"
        bind(call, KNOWN[name])


def test_no_signature_is_there_for_nothing():
    named = {name for _, name, _ in CALLS} | {"can_device_access_peer", "NPUGraph"}
    assert {name for name in KNOWN if "." not in name} == named


@pytest.mark.parametrize("wrong", ["graph(g, streams=s)", "stream()", "ExternalEvent(1)"])
def test_a_call_that_does_not_fit_is_found(wrong):
    call = ast.parse(wrong).body[0].value
    with pytest.raises(TypeError):
        bind(call, KNOWN[call.func.id])


@pytest.mark.skipif(not find_spec("torch_npu"), reason="torch_npu is not installed")
def test_they_are_what_torch_npu_has():
    startup.load()
    import torch

    for name, wanted in KNOWN.items():
        found = torch.npu
        for word in name.split("."):
            found = getattr(found, word)
        found = inspect.signature(found)
        bare = [
            item.replace(annotation=inspect.Parameter.empty) for item in found.parameters.values()
        ]
        assert list(wanted.parameters.values()) == bare, name
