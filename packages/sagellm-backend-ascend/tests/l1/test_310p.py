"""The 310P: its operators of NNAL and its weights in tiles, through torch_npu as it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

SCRIPT = """
    import json
    import numpy as np
    from ascend_sim import trace
    from sagellm_backend import get_provider
    from sagellm_backend.attention import AttentionMetadata

    backend = get_provider("ascend-l1")
    rng, answer = np.random.default_rng(0), {"family": backend.capability().compute_capability}

    def array(*shape):
        return backend.from_numpy(rng.standard_normal(shape).astype(np.float16))

    def tell(name, call):
        backend.synchronize()
        out = []
        calls = [item.name for item in trace.of(lambda: out.append(call()))]
        answer[name] = calls, backend.to_numpy(out[0]).astype(float).ravel().tolist()

    def attention(name, q, k, v, metadata):
        statics = {"mode": metadata.mode, "head_dim": q.shape[2]}
        for dtype, convert in (("fp16", lambda x: x), ("fp32", lambda x: x.float())):
            kernel = backend.get_kernel("attention", dtype=dtype, **statics)
            given = [convert(item) for item in (q, k, v)]
            tell(f"{name} {dtype}", lambda: kernel(*given, metadata, scale=0.1))

    decode = AttentionMetadata.build([1, 1], [130, 250], [[0, 1], [2, 3]], 128)
    attention("decode", array(2, 8, 128), array(4, 128, 2, 128), array(4, 128, 2, 128), decode)
    prompts = AttentionMetadata.build([20, 5], [20, 5])
    attention("prefill", array(25, 8, 128), array(25, 2, 128), array(25, 2, 128), prompts)
    x, weight, linear = array(2, 64), array(32, 64), backend.get_kernel("linear")
    for turn in range(3):
        tell(f"linear {turn}", lambda: linear(x, weight))
    print(json.dumps(answer))
"""
WAITS = {"aclrtSynchronizeStream", "aclrtSynchronizeDevice", "aclrtSynchronizeEvent", "pageable"}


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**os.environ, "ASCEND_SIM_SOC": "Ascend310P3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_chip_is_known(found):
    assert found["family"] == "310P"


@pytest.mark.parametrize(
    ("name", "operator"),
    [("decode", "atb::_npu_paged_attention"), ("prefill", "atb::_npu_flash_attention")],
)
def test_attention_is_nnals_and_nobody_waits(found, name, operator):
    calls, values = found[f"{name} fp16"]
    assert f"kernel {operator}" in calls
    assert "kernel npu::npu_format_cast" in calls  # caches and masks in tiles
    assert not WAITS & set(calls)
    others, wanted = found[f"{name} fp32"]  # which NNAL does not take
    assert not any("atb::" in call for call in others)
    np.testing.assert_allclose(values, wanted, rtol=2e-2, atol=2e-3)


def test_a_weight_is_cast_once_at_its_second_use(found):
    casts = [found[f"linear {turn}"][0].count("kernel npu::npu_format_cast") for turn in range(3)]
    assert casts == [0, 1, 0]
    assert found["linear 0"][1] == found["linear 1"][1] == found["linear 2"][1]
