"""The compiled copy of KV blocks: every byte of them and no other, however they lie and are shared out."""

import ctypes
import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider, DType, KVLayout
from sagellm_backend.cpu import kv
from sagellm_backend.cpu.compiled import team

FORMS = list(itertools.product(("NHD", "HND"), ("separate", "packed")))
PLACES = ("device", "host")
GUARD = 192


@pytest.fixture
def backend():
    with CPUBackendProvider() as provider:
        yield provider


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["through caches", "past caches"])
def past_caches(request, monkeypatch):
    monkeypatch.setattr(kv, "_PAST_CACHES", 0 if request.param else 1 << 60)
    return request.param


def guarded(rows, blocks, nbytes, seed, shift=0):
    """Random rows of blocks in the midst of more random bytes, and all of these."""
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, rows * blocks * nbytes + 2 * GUARD + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + GUARD - GUARD % 64 + shift
    return memory[start : start + rows * blocks * nbytes].reshape(rows, blocks, nbytes), memory


def moved(source, target, ids, past_caches=False, size=1):
    """What the kernel itself does, with so many blocks in a chunk."""
    rows, blocks, nbytes = source.shape
    names = [np.ascontiguousarray(each, np.int64) for each in ids]
    count = names[0].size
    words = (ctypes.c_int64 * 12)(
        0,
        source.ctypes.data,
        target.ctypes.data,
        blocks * nbytes,
        target.shape[1] * nbytes,
        *(each.ctypes.data for each in names),
        count,
        rows,
        nbytes,
        size,
        past_caches,
    )
    team.run(kv._KERNEL.function(), words, -(-rows * count // size))


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(1, 3),
    nbytes=st.sampled_from([1, 2, 31, 63, 64, 65, 127, 128, 500, 512, 576, 4096, 4100]),
    shift=st.integers(0, 63),
    size=st.integers(1, 7),
)
def test_every_byte_of_the_blocks_and_no_other(data, rows, nbytes, shift, size):
    sizes = [data.draw(st.integers(1, 9)) for _ in range(2)]
    source, around = guarded(rows, sizes[0], nbytes, 1, shift)
    target, beyond = guarded(rows, sizes[1], nbytes, 2, data.draw(st.integers(0, 63)))
    count = data.draw(st.integers(0, min(sizes)))
    ids = [np.array(data.draw(st.permutations(range(each)))[:count], np.int64) for each in sizes]
    kept, wanted = around.copy(), target.copy()
    wanted[:, ids[1]] = source[:, ids[0]]
    edges = beyond.copy()
    moved(source, target, ids, size=size)
    assert (target == wanted).all()
    assert (around == kept).all()
    target[:] = 0
    edges[target.ctypes.data - beyond.ctypes.data :][: target.nbytes] = 0
    assert (beyond == edges).all()


@pytest.mark.parametrize("nbytes", [64, 192, 4096])
@pytest.mark.parametrize("shift", [0, 1, 32, 63])
def test_past_the_caches_too(nbytes, shift):
    source, _ = guarded(2, 7, nbytes, 1, shift)
    target, beyond = guarded(2, 7, nbytes, 2)
    wanted, edges = target.copy(), beyond.copy()
    wanted[:, [6, 0, 3]] = source[:, [1, 2, 5]]
    moved(source, target, ([1, 2, 5], [6, 0, 3]), past_caches=True)
    assert (target == wanted).all()
    target[:] = 0
    edges[target.ctypes.data - beyond.ctypes.data :][: target.nbytes] = 0
    assert (beyond == edges).all()


@pytest.mark.parametrize("form", FORMS, ids="-".join)
@pytest.mark.parametrize("sizes", [(3, 5, 7), (1, 1, 1), (4, 64, 16)], ids=str)
@pytest.mark.usefixtures("past_caches")
def test_pools_of_every_form(backend, threads, form, sizes):
    heads, dim, tokens = sizes
    layout = KVLayout(2, heads, dim, tokens, DType.INT8, *form, alignment=1)
    blocks = 40
    source, target = (backend.kv_pool(layout, blocks + n, place) for n, place in enumerate(PLACES))
    rng = np.random.default_rng(threads)
    for pool in (source, target):
        pool.alloc(pool.num_blocks)
        pool.pages.copy_(torch.from_numpy(rng.integers(-128, 128, pool.pages.shape, np.int8)))
    ids = [rng.permutation(pool.num_blocks)[:30] for pool in (source, target)]
    wanted, kept = target.pages.clone(), source.pages.clone()
    wanted[:, ids[1]] = source.pages[:, ids[0]]
    transfer = backend.kv_copy_plan(source, target).copy(*ids)
    assert (transfer.num_blocks, transfer.nbytes) == (30, 30 * layout.page_bytes)
    assert torch.equal(target.pages, wanted)
    assert torch.equal(source.pages, kept)


def pools(backend, blocks=64, dtype=DType.FP16):
    layout = KVLayout(2, 2, 32, 16, dtype)
    made = [backend.kv_pool(layout, blocks, place) for place in PLACES]
    for pool in made:
        pool.alloc(blocks)
        pool.pages.view(torch.int16).random_(-(1 << 15), 1 << 15)
    return made


@pytest.mark.usefixtures("threads", "past_caches")
def test_ids_that_lie_apart_in_memory(backend):
    source, target = pools(backend)
    ids, to = np.arange(64)[::-3], np.arange(64, dtype=np.int64)[::2][:22]
    wanted = target.pages.clone()
    wanted[:, to] = source.pages[:, ids.copy()]
    backend.kv_copy_plan(source, target).copy(ids, to)
    assert torch.equal(target.pages.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.usefixtures("past_caches")
def test_copies_of_several_threads_at_once(backend):
    source, target = pools(backend)
    plan, faults = backend.kv_copy_plan(source, target), []

    def work(me):
        rng = np.random.default_rng(me)
        own = np.arange(me * 16, me * 16 + 16)
        for _ in range(100):
            ids, to = rng.permutation(64)[:16], rng.permutation(own)
            plan.copy(ids, to)
            pages = (pool.pages.view(torch.int16) for pool in (source, target))
            if not torch.equal(*(p[:, i] for p, i in zip(pages, (ids, to), strict=True))):
                faults.append(me)

    team_of_four = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in team_of_four:
        thread.start()
    for thread in team_of_four:
        thread.join()
    assert not faults


def test_other_threads_run_in_the_meantime(backend):
    layout = KVLayout(1, 1, 128, 128, DType.INT8)
    source, target = (backend.kv_pool(layout, 4096, place) for place in PLACES)
    everything = source.alloc(4096)
    target.alloc(4096)
    plan, steps, ended = backend.kv_copy_plan(source, target), [], threading.Event()

    def count():
        while not ended.is_set():
            steps.append(None)

    other = threading.Thread(target=count)
    other.start()
    try:
        function, during = plan._kernel, []

        def kernel(words):
            before = len(steps)
            function(words)
            during.append(len(steps) - before)

        plan._kernel = kernel
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(20):
            plan.copy(everything, everything)
        torch.set_num_threads(before)
    finally:
        ended.set()
        other.join()
    assert sum(map(bool, during)) > 5


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_torch_copies_where_the_kernel_cannot_be_had(backend, monkeypatch, form):
    class Missing:
        def function(self):
            return None

    layout = KVLayout(2, 3, 7, 5, DType.INT8, *form, alignment=1)
    source, target = (backend.kv_pool(layout, 9, place) for place in PLACES)
    for pool in (source, target):
        pool.alloc(9)
        pool.pages.random_(-128, 128)
    wanted = target.pages.clone()
    wanted[:, [0, 5, 1]] = source.pages[:, [8, 2, 3]]
    monkeypatch.setattr(kv, "_KERNEL", Missing())
    monkeypatch.setattr(team, "run", None)
    backend.kv_copy_plan(source, target).copy([8, 2, 3], [0, 5, 1])
    assert torch.equal(target.pages, wanted)


def test_blocks_of_protocol_are_copied_by_it(backend, monkeypatch):
    calls, run = [], team.run
    monkeypatch.setattr(team, "run", lambda *given: (calls.append(given), run(*given)))
    one, two = (backend.kv_block_alloc(20, DType.BF16) for _ in range(2))
    backend.kv_block_copy(one, two)
    assert len(calls) == 1
