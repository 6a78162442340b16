"""Exported pools: the suite's cases in two processes, over shared host memory in place of CUDA's."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sagellm_backend import DType, KVLayout
from sagellm_backend.conformance.runner import run
from sagellm_backend.cuda import export
from sagellm_backend.cuda.export import Export
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

HERE = Path(__file__).parent
LAYOUT = KVLayout(2, 2, 8, block_size=4, dtype=DType.BF16)
CASES = (
    "kv.an_exported_pool_is_one_memory",
    "kv.handles_are_refused_when_they_are_not_whole",
    "core.kv_export_gives_handles",
)


@pytest.fixture
def made(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    return Export(LAYOUT, 6, "card-0", 1, str(lock), 64, (b"handle", 4096, 0, b"r", 0, b"e", True))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    info = site / "exporting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exporting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sagellm.backends]\nexporting = fake_cuda.exporting:SPEC\n"
    )
    return [str(site), str(HERE)]


def test_the_suite_s_cases_pass_in_two_processes(site):
    result = run("exporting", profiles=["core", "kv"], seed=2, paths=site, cases=CASES)
    assert [(case.id, case.detail) for case in result.cases if not case.passed] == []
    assert {case.id for case in result.cases} == set(CASES)
    assert "kv_export" in result.descriptor["features"]


def test_a_handle_says_all_that_was_put_in(made):
    assert Export.unseal(made.seal()) == made


@pytest.mark.parametrize("place", [0, 15, 16, 40, -1])
def test_a_bit_that_is_another_is_seen(made, place):
    handle = bytearray(made.seal())
    handle[place] ^= 1
    with pytest.raises(InvalidArgumentError, match="digest"):
        Export.unseal(bytes(handle))


def test_a_pool_whose_process_ended_is_refused(made):
    with pytest.raises(UnavailableError, match="process has ended"):
        export.require_lease(made.lock)
    with pytest.raises(UnavailableError, match="closed"):
        export.require_lease(f"{made.lock}-gone")


def test_a_lock_is_that_of_an_open_pool_and_of_a_living_process():
    source = """
import os, sys, torch
from sagellm_backend.cuda import export
pages = torch.zeros(4)
print(export._lease(pages), flush=True)
sys.stdin.readline()
del pages
print("closed", flush=True)
pages = torch.zeros(4)
print(export._lease(pages), flush=True)
sys.stdin.readline()
os._exit(1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lock = process.stdout.readline().strip()
        export.require_lease(lock)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        assert not Path(lock).exists()
        lock = process.stdout.readline().strip()
        export.require_lease(lock)
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(10)
    assert Path(lock).exists()  # nobody was left to remove it
    with pytest.raises(UnavailableError):
        export.require_lease(lock)
    Path(lock).unlink()


class Owner:
    device_type = "cuda"


class Module:
    def __init__(self, *cards):
        self.cards = cards

    def device_count(self):
        return len(self.cards)

    def get_device_properties(self, index):
        return type("Properties", (), {"uuid": self.cards[index]})


def test_a_card_is_found_by_its_uuid(made):
    exports = export.Exports(Owner(), Module("card-3", "card-0"))
    assert exports._device_of(made.card) == torch.device("cuda:1")
    with pytest.raises(UnavailableError, match="does not see"):
        export.Exports(Owner(), Module("card-3")).open(made.seal())


def test_a_handle_of_this_process_is_refused(made):
    own = made._replace(process=os.getpid()).seal()
    with pytest.raises(InvalidArgumentError, match="this process"):
        export.Exports(Owner(), Module("card-0")).open(own)


class TestTorch:
    """What torch.multiprocessing does with the same two calls, in its own sources."""

    SOURCE = inspect.getsource(torch.multiprocessing.reductions)

    def test_it_shares_eight_fields_of_which_the_first_is_the_device(self):
        fields = self.SOURCE.partition("storage._share_cuda_()")[0].rpartition("(\n")[2]
        names = [line.strip(" ,)=") for line in fields.splitlines() if line.strip(" ,)=")]
        assert names[0] == "device"
        assert len(names) == 8

    def test_it_opens_them_in_that_order(self):
        call = self.SOURCE.partition("_new_shared_cuda(")[2].partition(")")[0]
        names = [word.strip() for word in call.split(",") if word.strip()]
        assert names == [
            "storage_device",
            "storage_handle",
            "storage_size_bytes",
            "storage_offset_bytes",
            "ref_counter_handle",
            "ref_counter_offset",
            "event_handle",
            "event_sync_required",
        ]

    def test_our_calls_are_these(self, monkeypatch):
        class Storage:
            def _share_cuda_(self):
                return (1, b"handle", 4096, 64, b"counter", 2, b"event", True)

        seen = []
        monkeypatch.setattr(
            torch.UntypedStorage, "_new_shared_cuda", lambda *given: seen.append(given)
        )
        shared = export.share(Storage())
        export.open_shared(torch.device("cuda:3"), shared)
        assert seen == [(3, b"handle", 4096, 64, b"counter", 2, b"event", True)]
