"""Real distributions in temporary folders: metadata, entry points and modules, nothing mocked.

And work that does not end before a test says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from sagellm_backend import discovery, registry

# A machine with other work is no failure of a property.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

PROVIDER = """
class Provider:
    name = "fake"
    def __init__(self, config=None):
        self.config = config
    def _nothing(self, *args, **kwargs):
        return None
    capability = clear_cache = create_event = create_stream = get_kernel = _nothing
    kv_block_alloc = kv_block_copy = kv_block_free = kv_block_migrate = _nothing
    memory_stats = register_kernel = _nothing
"""

V01 = """
calls = []
class Provider:
    def __init__(self):
        pass
for method in ("capability", "clear_cache", "create_event", "create_stream", "get_kernel",
               "kv_block_alloc", "kv_block_copy", "kv_block_free", "kv_block_migrate",
               "memory_stats", "register_kernel"):
    setattr(Provider, method, lambda self: None)
def create(config=None):
    calls.append(config)
    return Provider()
def create_without():
    return Provider()
def wants_two(a, b):
    return Provider()
class Plugin:
    pass
THING = 3
"""

SPEC = """
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.spec import BackendSpec, Probe

def probe():
    return {probe}

SPEC = BackendSpec(
    name={name!r}, device_type="cpu", priority={priority}, array_framework={framework!r},
    probe=probe, factory="{module}_provider:Provider", aliases={aliases!r}, contract={contract!r},
    automatic={automatic},
)
"""


class Distributions:
    """Fake distributions, each in a folder of its own on ``sys.path``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.paths: list[str] = []
        self.modules: list[str] = []
        real = importlib.metadata.distributions
        monkeypatch.setattr(
            importlib.metadata, "distributions", lambda: real(path=list(self.paths))
        )

    def add(self, name, entries, modules=None, *, version="1.0", record=None):
        """Install a distribution: ``entries`` by name, ``modules`` as source by name."""
        root = self.folder / f"site{len(self.paths)}"
        info = root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        lines = [f"{entry} = {target}" for entry, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{discovery.GROUP}]", *lines]))
        if record is not None:
            (info / "RECORD").write_text("".join(f"{path},,\n" for path in record))
        for module, source in (modules or {}).items():
            (root / f"{module}.py").write_text(textwrap.dedent(source))
            self.modules.append(module)
        self.paths.append(str(root))
        self.monkeypatch.syspath_prepend(str(root))
        return root

    def add_backend(
        self,
        name,
        *,
        distribution=None,
        entry=None,
        priority=10,
        aliases=(),
        contract=(1, 0),
        framework="torch",
        automatic=True,
        probe='Probe.available(DeviceInfo(0, "a device", 2**30))',
        provider=PROVIDER,
    ):
        """Install a distribution with one backend; its provider is a module of its own."""
        distribution = distribution or f"vendor-{name}"
        module = distribution.replace("-", "_") + f"_{len(self.modules)}"
        spec = SPEC.format(
            name=name,
            priority=priority,
            framework=framework,
            aliases=aliases,
            contract=contract,
            automatic=automatic,
            probe=probe,
            module=module,
        )
        sources = {module: spec, f"{module}_provider": provider}
        self.add(distribution, {entry or name: f"{module}:SPEC"}, sources)
        return module

    def add_v01(self, entry, target):
        """Install the distribution ``old``, whose ``old_module`` is as v0.1 has them."""
        self.add("old", {entry: f"old_module:{target}"}, {"old_module": V01})

    def entry(self, name):
        """The only entry of that name that discovery finds."""
        (found,) = [item for item in discovery.discover().found if item.name == name]
        return found

    def forget(self):
        """Undo the imports of the fake modules."""
        for module in self.modules:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()


@pytest.fixture(autouse=True)
def _fresh_discovery(monkeypatch):
    """No environment variable, cached report, registration or warning leaks into a test."""
    for variable in (registry.CHOICE, *discovery.WATCHED_VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(discovery, "_cache", {})
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_said", set())


@pytest.fixture
def distributions(tmp_path, monkeypatch):
    """An environment that holds only the distributions that the test adds, and no accelerator."""
    monkeypatch.setattr(discovery, "seen_accelerators", tuple)
    fakes = Distributions(tmp_path, monkeypatch)
    yield fakes
    fakes.forget()


class Gate(threading.Event):
    """Set when the test has seen enough."""

    def hold(self):
        """Work that ends when the gate is set."""
        if not self.wait(20.0):
            pytest.fail("the gate was never opened")


@pytest.fixture
def gate():
    opened = Gate()
    yield opened
    opened.set()
