"""The Python that our readers will paste, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def python_blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_code_of_the_readme_runs_as_written(name):
    blocks = python_blocks(name)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, name, "exec"), {})


def test_both_readmes_show_the_same_code():
    def bare(name):
        return [re.sub(r"#.*", "", block) for block in python_blocks(name)]

    assert bare("README.md") == bare("README.zh-CN.md")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "conformance/README.md"])
def test_every_file_that_is_linked_exists(name):
    folder = (ROOT / name).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (folder / link).exists()] == []
