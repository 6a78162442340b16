"""What stands for ``torch.npu`` at L0 takes what torch_npu takes."""

from __future__ import annotations

import inspect
from pathlib import Path

import npu_l0
import pytest
from npu_l0 import graphs, module

LINES = Path(npu_l0.__file__).with_name("api.txt").read_text(encoding="utf-8").splitlines()


def is_ours(line):
    """Whether a signature is of what is written here, and not torch's own."""
    found = graphs
    for word in line.partition("(")[0].split("."):
        found = getattr(found, word, None)
    return getattr(found, "__module__", None) == graphs.__name__


OURS = [line for line in LINES if is_ours(line)]


def test_everything_public_is_compared():
    assert {line.partition("(")[0].partition(".")[0] for line in OURS} == set(module.PUBLIC)


@pytest.mark.parametrize("line", OURS)
def test_a_signature_is_the_real_one(line):
    name, _, _ = line.partition("(")
    found = graphs
    for word in name.split("."):
        found = getattr(found, word)
    text = str(inspect.signature(found).replace(return_annotation=inspect.Signature.empty))
    assert text.replace(": 'str'", ": str") == line[len(name) :]
