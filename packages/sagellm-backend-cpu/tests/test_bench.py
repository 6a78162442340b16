"""Every row of the benchmark on the cpu backend, in quick: that it runs, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sagellm_backend.bench import rows  # noqa: F401 - importing them declares them
from sagellm_backend.bench.row import rows as declared
from sagellm_backend.cli import main


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    assert main(["bench", "--backend", "cpu", "--quick", "--out", str(folder)]) == 0
    return json.loads((folder / "bench.json").read_text("utf-8"))


def test_every_row_was_measured(report):
    assert [row["name"] for row in report["rows"]] == [row.name for row in declared()]
    assert {
        row["name"]: row["ours"]["absent"] for row in report["rows"] if row["ours"]["absent"]
    } == {}


def test_only_peers_are_absent(report):
    absent = {other["absent"] for row in report["rows"] for other in row["others"]} - {None}
    assert absent == {"not asked for: --peer vllm=PYTHON"}


def test_torch_stands_beside_all_but_the_bookkeeping(report):
    alone = {
        row["name"] for row in report["rows"] if not any(other["best"] for other in row["others"])
    }
    assert alone == {*(f"block-ids-{size}" for size in (1, 8, 32, 128, 512)), "start"}


def test_limits_were_measured_in_all_dtypes(report):
    assert set(report["limits"]["gemm"]) == {"fp32", "bf16", "fp16"}
    assert all(value > 0 for value in report["limits"]["memory"][0].values())


def test_the_rows_of_the_repository_are_added():
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    command = [sys.executable, "-m", "sagellm_backend.cli", "bench", "--list", "--json"]
    done = subprocess.run(
        [*command, "--also", str(folder)], check=True, capture_output=True, text=True
    )
    found = {row["name"]: row["group"] for row in json.loads(done.stdout)}
    assert found["token-int8"] == "whole model"
    assert found["engine-prefill-128"] == "published engine"
    assert found["compile-block_copy-bytes"] == "compiled kernels"
    assert {row.name for row in declared()} < set(found)
