"""What stands between an XPU and a provider: each fault has a message and a remedy of its own."""

from __future__ import annotations

import logging
import os
import platform
import sys
from types import SimpleNamespace

import pytest

from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError, UnavailableError
from sagellm_backend.kunlun import places, stack, startup


@pytest.fixture
def installed(monkeypatch):
    """Says which distributions are there: ``installed(paddlepaddle="3.3.1", modules=[...])``."""

    def tell(modules=(), python_fits=True, **versions):
        named = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(stack.frameworks, "version_of", named.get)
        monkeypatch.setattr(stack.frameworks, "is_installed", lambda name: name in modules)
        wanted = sys.version_info[:2] if python_fits else (2, 7)
        monkeypatch.setattr(stack, "XPU_PYTHON", wanted)
        monkeypatch.setattr(stack, "XPU_MACHINE", platform.machine())

    return tell


@pytest.fixture
def paddle(monkeypatch):
    """A Paddle for XPUs; what its parts do is the test's to say."""
    tensor = object()
    made = SimpleNamespace(
        __version__="3.3.0",
        device=SimpleNamespace(is_compiled_with_xpu=lambda: True),
        ones=lambda *_, **__: tensor,
        add=lambda *_: tensor,
    )
    monkeypatch.setattr(startup, "import_module", lambda name: made)
    monkeypatch.delenv(startup.EXACT_PRODUCTS, raising=False)
    yield made
    os.environ.pop(startup.EXACT_PRODUCTS, None)


def runtime(count=1, device_type="xpu", synchronize=lambda _: None):
    return SimpleNamespace(
        device_type=device_type,
        count=count if callable(count) else lambda: count,
        place=lambda index: f"place {index}",
        synchronize=synchronize,
    )


def failing(error):
    def call(*_, **__):
        raise error

    return call


BOTH = {"paddlepaddle": "3.3.1", "paddlepaddle_xpu": "3.3.0", "modules": ["paddle"]}
STATES = {
    "no paddle": ({}, "paddlepaddle-xpu is not installed"),
    "the wrong Python": ({"python_fits": False}, "no wheel for Python"),
    "the CPU's paddle": ({"paddlepaddle": "3.3.1", "modules": ["paddle"]}, "not the XPU build"),
    "both paddles": (BOTH, "overwrite one another"),
    "xpytorch": ({"modules": ["torch_xmlir"]}, "speaks Paddle"),
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_installed_is_an_error_of_its_own(installed, state):
    what, words = STATES[state]
    installed(**what)
    with pytest.raises(UnavailableError, match=words) as raised:
        startup.load()
    assert "pip" in raised.value.hint


def test_all_states_differ(installed):
    told = []
    for what, _ in STATES.values():
        installed(**what)
        told.append(stack.xpu_fault())
    assert len(set(told)) == len(STATES)


def test_the_xpu_build_alone_is_no_fault(installed):
    installed(paddlepaddle_xpu="3.3.0", modules=["paddle"])
    assert stack.xpu_fault() is None


def test_other_places_need_any_paddle(installed):
    installed()
    with pytest.raises(UnavailableError, match="Paddle is not installed") as raised:
        startup.load(("cpu:0",))
    assert stack.CPU_BUILD in raised.value.hint


def test_importing_leaves_environment_and_logging_as_they_were(installed, monkeypatch):
    installed(paddlepaddle_xpu="3.3.0", modules=["paddle"])
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.setenv("REMOVED", "before")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def change(name):
        os.environ.update(OMP_NUM_THREADS="1", KEPT="after")
        del os.environ["REMOVED"]
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger().setLevel(1)

    monkeypatch.setattr(startup, "import_module", change)
    environment, root = dict(os.environ), logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    startup.load()
    assert dict(os.environ) == environment
    assert (root.level, root.handlers) == (level, handlers)


IMPORTS = {
    "libxpurt.so.1: cannot open shared object file": "libraries of the XPU runtime",
    "libpaddle.so: undefined symbol: xpu_malloc": "another release",
    "something else": "something else",
}


@pytest.mark.parametrize("said", IMPORTS)
def test_a_paddle_that_does_not_import_is_explained(installed, monkeypatch, said):
    installed(paddlepaddle_xpu="3.3.0", modules=["paddle"])
    monkeypatch.setattr(startup, "import_module", failing(ImportError(said)))
    with pytest.raises(UnavailableError, match=IMPORTS[said]) as raised:
        startup.load()
    assert raised.value.hint


def test_metadata_that_lie_about_the_build(paddle):
    paddle.device.is_compiled_with_xpu = lambda: False
    with pytest.raises(UnavailableError, match="not built for XPUs, whatever metadata say"):
        startup.begin(runtime(), 0)


def test_no_device(paddle):
    with pytest.raises(UnavailableError, match="found no device") as raised:
        startup.begin(runtime(0), 0)
    assert "XPU_VISIBLE_DEVICES" in raised.value.hint


def test_a_driver_that_does_not_start(paddle):
    broken = runtime(failing(RuntimeError("xpu_set_device failed: XPUERR_NOAVAILABLE")))
    with pytest.raises(UnavailableError, match="cannot start its driver: the device is busy"):
        startup.begin(broken, 0)


def test_products_are_exact_unless_the_user_says_otherwise(paddle, monkeypatch):
    startup.begin(runtime(), 0)
    assert os.environ[startup.EXACT_PRODUCTS] == "1"
    monkeypatch.setenv(startup.EXACT_PRODUCTS, "0")
    startup.begin(runtime(), 0)
    assert os.environ[startup.EXACT_PRODUCTS] == "0"


def test_places_that_paddle_does_not_have(paddle):
    with pytest.raises(UnavailableError, match="names 2 places of type other, and Paddle has 1"):
        startup.begin(runtime(1, "other"), 2)
    missing = runtime(failing(RuntimeError("interface not found")), "other")
    with pytest.raises(UnavailableError, match="Paddle has 0") as raised:
        startup.begin(missing, 1)
    assert "CUSTOM_DEVICE_ROOT" in raised.value.hint


USES = {
    "busy": (RuntimeError("device busy"), UnavailableError, "busy or does not answer"),
    "full": (RuntimeError("XPUERR_NOMEM: no memory"), OutOfMemoryError, "the device is full"),
    "denied": (RuntimeError("Permission denied"), UnavailableError, "may not use the device"),
    "another": (RuntimeError("a strange thing"), UnavailableError, "a strange thing"),
}


@pytest.mark.parametrize("state", USES)
@pytest.mark.parametrize("where", ["kernel", "synchronize"])
def test_a_device_that_cannot_be_used(paddle, state, where):
    error, kind, words = USES[state]
    used = runtime(synchronize=failing(error)) if where == "synchronize" else runtime()
    if where == "kernel":
        paddle.ones = failing(error)
    with pytest.raises(kind, match=words) as raised:
        startup.occupy(used, 0, "xpu:0")
    assert "xpu:0" in str(raised.value)
    assert raised.value.hint


class TestPlaces:
    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ("", ()),
            ("cpu", ("cpu:0",)),
            ("kunlun_sim:0, kunlun_sim:1", ("kunlun_sim:0", "kunlun_sim:1")),
        ],
    )
    def test_are_named_by_the_environment(self, value, found):
        assert places.places({places.VARIABLE: value}) == found

    @pytest.mark.parametrize("value", ["cpu:0,cpu:1", "a:1", "a:0,b:1", "a", "a:0,a:2", ":0", ","])
    def test_are_refused_unless_they_are_of_one_type_and_numbered(self, value):
        with pytest.raises(InvalidArgumentError, match=places.VARIABLE):
            places.places({places.VARIABLE: value})
