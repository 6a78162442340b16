"""A suite that misbehaves in every way that the runner knows."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

from sagellm_backend.capability import Feature
from sagellm_backend.conformance.case import case


@case("core")
def passes(exam):
    """It passes."""
    exam.measure("draw", exam.rng.random())


@case("core")
def fails(exam):
    """It fails."""
    exam.check(not exam.provider, "one is not above two")


@case("core")
def asserts(exam):
    """It fails by assert."""
    assert exam.provider is None, "there is a provider"


@case("core")
def raises(exam):
    """It raises."""
    raise KeyError("planted")


@case("core")
def wants_to_exit(exam):
    """It calls sys.exit, for success."""
    sys.exit(0)


@case("core")
def returns_a_coroutine(exam):
    """Its body never runs."""

    async def body():
        raise AssertionError

    made = body()
    made.close()
    return made


@case("core")
def skips(exam):
    """It skips."""
    raise unittest.SkipTest("not today")


@case("core")
def skips_as_pytest_does(exam):
    """It raises what pytest.skip raises."""
    raise type("Skipped", (BaseException,), {})("not today")


@case("core")
def exits_with_0(exam):
    """Its process ends well."""
    os._exit(0)


@case("core")
def exits_with_1(exam):
    """Its process ends badly."""
    print("a last word", flush=True)
    os._exit(1)


@case("core")
def kills_itself(exam):
    """Its process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


@case("core")
def hangs(exam):
    """It never ends, and no other thread of Python can run meanwhile."""
    ctypes.PyDLL(None).sleep(1000)


@case("core")
def floods(exam):
    """It prints 5 MiB."""
    for _ in range(5):
        sys.stdout.write("x" * (1 << 20))


@case("core")
def talks_a_little(exam):
    """Its neighbour's flood is not its own, and forged records on standard output mean nothing."""
    for event in ("end", "start"):
        print(json.dumps({"event": event, "id": "core.passes", "outcome": "failed"}))


@case("core")
def leaves_a_thread(exam):
    """A thread of it goes on."""
    threading.Thread(target=time.sleep, args=(1000,), name="planted-thread").start()


@case("core")
def ends_its_threads(exam):
    """Threads that end soon after, and those that do not hinder an exit, are no fault."""
    threading.Thread(target=time.sleep, args=(0.1,)).start()
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


@case("core")
def closing_fails(exam):
    """A provider of it cannot be closed."""
    exam.make()._synchronize = lambda: 1 / 0


@case("core")
def leaves_a_process(exam):
    """A process of it goes on."""
    left = subprocess.Popen(["/bin/sleep", "1000"])
    exam.measure("pid", left.pid)


@case("kv", params={"value": (1, "two")})
def is_given_values(exam):
    """It knows its value."""
    exam.check(exam["value"] in (1, "two"), "no value")
    exam.measure("draw", exam.rng.random())


@case("graph", without=Feature.GRAPH)
def refuses_graphs(exam):
    """What is not claimed is refused."""


@case("graph", requires=(Feature.GRAPH,))
def captures(exam):
    """What is claimed is there."""


@case("model", depth="stress")
def takes_long(exam):
    """It is for stress."""
