"""Whatever is passed to whatever public method: an answer or an error of our family, and no trace."""

import inspect
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagellm_backend import CPUBackendProvider, DType, KVBlock, KVLayout
from sagellm_backend.errors import BackendError

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=64, block_size=4, dtype=DType.FP16)
AT_ONCE_S = 5.0
"""Far above what any refusal takes, and far below a timeout or a walk through an endless range."""


class Hostile:
    """An object that fails wherever it is looked at."""

    def _fail(self, *_):
        raise RuntimeError("looked at")

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __array__ = _fail


OTHER = CPUBackendProvider()
STRANGERS = [
    OTHER,
    OTHER.kv_pool(LAYOUT, 2),
    OTHER.kv_block_alloc(1, DType.FP16),
    OTHER.create_stream(),
    OTHER.create_event(),
    OTHER.kv_copy_plan(*[OTHER.kv_pool(LAYOUT, 2)] * 2),
    KVBlock(10**30, 1, DType.FP16, "cpu"),
    KVBlock(None, [], "x", None),
]
UNWRITABLE = [10**400, -(10**400), 10**5000, Hostile(), [Hostile()]]
JUNK = [
    None,
    True,
    False,
    0,
    1,
    -1,
    1 << 31,
    1 << 63,
    0.0,
    1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    1j,
    "",
    "x",
    "fp32",
    "int4",
    "cpu",
    "cpu:1",
    "cuda:0",
    "device",
    "host",
    "sum",
    "linear",
    "\x00",
    b"fp32",
    bytearray(2),
    [],
    (),
    {},
    set(),
    [1],
    [0],
    [-1],
    [1.0],
    [None],
    [[1], [2, 3]],
    (1, 2),
    (1 << 62, 1 << 62),
    {"dtype": 1},
    range(10**30),
    range(3),
    object(),
    object,
    int,
    len,
    DType.FP16,
    DType.INT4,
    LAYOUT,
    np.zeros(2),
    np.zeros(2, np.float32),
    np.arange(2),
    np.array(None),
    np.bool_(1),
    np.int64(3),
    np.float16(2),
    torch.zeros(2),
    torch.zeros(2, 2, dtype=torch.int64),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(2, device="meta"),
    torch.eye(2).to_sparse(),
    torch.float32,
    *STRANGERS,
    *UNWRITABLE,
]
# Indices, so that no value needs a text when an example is reported.
junk = st.integers(0, len(JUNK) - 1)
# Operations and reductions write out what they refuse, and the table compares floats.
writable = st.integers(0, len(JUNK) - len(UNWRITABLE) - 1)


def own(backend):
    """What only this provider can change, the peak excepted."""
    moving = ("peak_allocated_bytes", "device_total_bytes", "device_free_bytes")
    return {name: v for name, v in backend.memory_stats().items() if name not in moving}


def methods(kind):
    """The public methods of a class, with how many arguments each takes at least and at most."""
    found = {}
    for name, method in inspect.getmembers(kind, callable):
        if name.startswith("_") or name == "close":
            continue
        parameters = [
            item
            for item in list(inspect.signature(method).parameters.values())[1:]
            if item.kind not in {item.VAR_KEYWORD, item.VAR_POSITIONAL}
        ]
        least = sum(item.default is item.empty for item in parameters)
        found[name] = (least, len(parameters))
    return found


def call(backend, method, arguments, **named):
    """One call: it gives something, which is given back, or raises an error of our family."""
    before, began = own(backend), time.perf_counter()
    with suppress(BackendError):
        result = method(*arguments, **named)
        if isinstance(result, KVBlock):
            backend.kv_block_free(result)
            backend.clear_cache()
        del result
    assert time.perf_counter() - began < AT_ONCE_S
    assert own(backend) == before


PROVIDER_METHODS = methods(CPUBackendProvider)
relaxed = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_the_methods_under_test_are_those_of_the_contract():
    assert PROVIDER_METHODS.keys() >= {
        *("capability", "require", "empty", "from_numpy", "to_numpy", "memory_stats"),
        *("clear_cache", "create_stream", "create_event", "synchronize", "capture", "kv_pool"),
        *("kv_copy_plan", "register_kernel", "get_kernel", "supports", "explain"),
        *("attention_metadata", "communicator", "kv_block_alloc", "kv_block_free"),
        *("kv_block_copy", "kv_block_migrate", "all_reduce", "all_gather"),
    }


@pytest.fixture(params=["open", "closed"], scope="module")
def backend(request):
    provider = CPUBackendProvider({"kv_layout": LAYOUT, "kv_blocks": 4})
    if request.param == "closed":
        provider.close()
    return provider


@pytest.mark.parametrize("name", PROVIDER_METHODS)
@relaxed
@given(data=st.data())
def test_a_provider_answers_or_refuses_in_our_family(backend, name, data):
    least, most = PROVIDER_METHODS[name]
    values = writable if name == "all_reduce" else junk
    places = data.draw(st.lists(values, min_size=least, max_size=most))
    call(backend, getattr(backend, name), [JUNK[place] for place in places])


@pytest.mark.parametrize("name", ["get_kernel", "supports", "explain"])
@relaxed
@given(data=st.data())
def test_statics_are_accepted_or_refused_in_our_family(backend, name, data):
    operation = data.draw(st.sampled_from(["attention", "rms_norm", "rope", "kv_write", "gelu"]))
    words = ["dtype", "window", "softcap", "scale", "eps", "style", "approximate", "head_dim", "x"]
    chosen = data.draw(st.dictionaries(st.sampled_from(words), writable, min_size=1))
    static = {word: JUNK[place] for word, place in chosen.items()}
    call(backend, getattr(backend, name), [operation], **static)


@relaxed
@given(place=junk)
def test_settings_are_accepted_or_refused_in_our_family(place):
    value = JUNK[place]
    keys = ("device", "memory_limit", "kv_layout", "kv_blocks", "fallback", "reference_only", "x")
    for config in (value, *({key: value} for key in keys)):
        with suppress(BackendError):
            CPUBackendProvider(config).close()


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("kind", ["pool", "plan", "stream", "event", "transfer"])
@relaxed
@given(data=st.data())
def test_what_a_provider_made_answers_or_refuses_in_our_family(kind, closed, data):
    backend = MAKER
    with backend.kv_pool(LAYOUT, 4) as pool:
        made = {
            "pool": lambda: pool,
            "plan": lambda: backend.kv_copy_plan(pool, pool),
            "stream": backend.create_stream,
            "event": backend.create_event,
            "transfer": lambda: backend.kv_copy_plan(pool, pool).copy([], []),
        }[kind]()
        pool.alloc(2)
        if closed:
            pool.close()
        found = {name: n for name, n in methods(type(made)).items() if name != "on_close"}
        for name, (least, most) in found.items():
            places = data.draw(st.lists(junk, min_size=least, max_size=most), label=name)
            call(backend, getattr(made, name), [JUNK[place] for place in places])


MAKER = CPUBackendProvider()


@pytest.mark.parametrize("name", ["rms_norm", "attention", "kv_write", "sample", "embedding"])
@relaxed
@given(data=st.data())
def test_kernels_answer_or_refuse_in_our_family(name, data):
    kernel = MAKER.get_kernel(name)
    parameters = inspect.signature(kernel).parameters
    arguments = {word: JUNK[data.draw(writable, label=word)] for word in parameters}
    call(MAKER, kernel, [], **arguments)
