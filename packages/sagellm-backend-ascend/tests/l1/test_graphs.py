"""A decode that is captured by the real ``NPUGraph``, and told other lengths."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import torch

from sagellm_backend.attention import AttentionMetadata

TABLE = [[0, 1], [2, 3]]


def test_a_replay_follows_the_lengths_of_an_update_and_nobody_waits(backend, calls):
    rng = np.random.default_rng(3)
    q, k, v = (
        backend.from_numpy(rng.standard_normal(shape).astype(np.float16))
        for shape in ((2, 8, 128), (4, 128, 2, 128), (4, 128, 2, 128))
    )
    first, second = (
        AttentionMetadata.build([1, 1], lengths, TABLE, 128) for lengths in ([130, 250], [256, 129])
    )
    kernel = backend.get_kernel("attention", dtype="fp16", mode="paged_decode", head_dim=128)
    inputs = {"q": q, "step": first}
    with closing(
        backend.capture(lambda q, step: kernel(q, k, v, step, scale=0.1), inputs)
    ) as graph:
        for metadata in (first, second, first):
            wanted = backend.to_numpy(kernel(q, k, v, metadata, scale=0.1))
            found = calls(lambda metadata=metadata: graph.update({"step": metadata}))
            updates = [call for call in found if call.name == "aclmdlRICaptureTaskUpdateBegin"]
            assert len(updates) == 1
            found += calls(graph.replay)
            replays = [call for call in found if call.name == "aclmdlRIExecuteAsync"]
            assert [call.stream for call in replays] == [torch.npu.current_stream().npu_stream]
            assert updates[0].stream != replays[0].stream
            assert not [call for call in found if "ynchronize" in call.name]
            assert np.array_equal(backend.to_numpy(graph.replay()), wanted)
