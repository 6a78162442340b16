"""Two processes, one device each, over the real process group of torch_npu."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAIR = Path(__file__).with_name("pair.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    address = f"file://{tmp_path_factory.mktemp('meeting')}/point"
    started = [
        subprocess.Popen(
            [sys.executable, str(PAIR), str(rank), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


@pytest.mark.parametrize(
    ("name", "first", "second", "call"),
    [
        ("all_reduce", [1, 3, 5, 7], [1, 3, 5, 7], "HcclAllReduce"),
        ("all_gather", [[0, 1, 2, 3], [1, 2, 3, 4]], [[0, 1, 2, 3], [1, 2, 3, 4]], "HcclAllGather"),
        ("reduce_scatter", [1, 3], [5, 7], "HcclReduceScatter"),
        ("broadcast", [1, 2, 3, 4], [1, 2, 3, 4], "HcclBroadcast"),
        ("all_to_all", [[0, 1], [1, 2]], [[2, 3], [3, 4]], "HcclAlltoAll"),
    ],
)
def test_a_collective(found, name, first, second, call):
    assert [answer[name] for answer in found] == [first, second]
    for answer in found:
        (made,) = answer[f"{name} calls"]
        assert made.startswith(call)


def test_a_message(found):
    assert found[0]["recv"] == [1, 2, 3, 4]


def test_a_peer_that_does_not_come_is_a_timeout_and_its_group_can_be_closed(found):
    assert [answer["after"] for answer in found] == [[1, 3, 5, 7]] * 2
    (timed_out, taken), (refused, _) = found[1]["alone"], found[1]["again"]
    assert timed_out
    assert refused
    assert 1.5 <= taken < 5
    for raised, taken in (answer["close"] for answer in found):
        assert not raised
        assert taken < 5  # HCCL gives up what is under way, and not after its 1836 s
