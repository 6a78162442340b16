"""Providers that would end, stall or flood the examination instead of failing it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import unittest
from typing import Any

import numpy.typing as npt

from sagellm_backend.conformance.result import STARTUP
from sagellm_backend.conformance.zoo.member import member
from sagellm_backend.hooks import Place
from sagellm_backend.reference.arrays import DeviceArray
from sagellm_backend.reference.provider import ReferenceProvider

_CASE = ("core.reshape_keeps_the_order",)
_SOON_S = 4.0


class Skipped(BaseException):
    """As pytest's own, which is known by its name."""


class _Upset(ReferenceProvider):
    """Copying an array in does what :meth:`upset` does."""

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        self.upset()
        return super()._from_numpy(array, place)

    def upset(self) -> None:
        """Do what no provider may."""


@member("core", "It raises unittest.SkipTest", kills=_CASE, apart=True)
class RaisesSkipTest(_Upset):
    def upset(self) -> None:
        raise unittest.SkipTest("no such hardware")


@member("core", "It skips as pytest does", kills=_CASE, apart=True)
class SkipsLikePytest(_Upset):
    def upset(self) -> None:
        raise Skipped("no such hardware")


@member("core", "It ends the process with success", kills=_CASE, apart=True)
class ExitsWithSuccess(_Upset):
    def upset(self) -> None:
        os._exit(0)


@member("core", "It ends the process with a failure", kills=_CASE, apart=True)
class ExitsWithFailure(_Upset):
    def upset(self) -> None:
        os._exit(3)


@member("core", "It raises SystemExit(0)", kills=_CASE, apart=True)
class RaisesSystemExit(_Upset):
    def upset(self) -> None:
        sys.exit(0)


@member("core", "It raises KeyboardInterrupt", kills=_CASE, apart=True)
class RaisesKeyboardInterrupt(_Upset):
    def upset(self) -> None:
        raise KeyboardInterrupt


@member("core", "It crashes by a segmentation fault", kills=_CASE, apart=True)
class CrashesHard(_Upset):
    def upset(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


@member("core", "It hangs", kills=_CASE, apart=True, limit_s=_SOON_S)
class Hangs(_Upset):
    def upset(self) -> None:
        time.sleep(1e6)


@member("core", "It hangs where no signal reaches it", kills=_CASE, apart=True, limit_s=_SOON_S)
class HangsDeaf(_Upset):
    def upset(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
        time.sleep(1e6)


@member("core", "It hangs when it is closed", kills=_CASE, apart=True, limit_s=_SOON_S)
class HangsWhenClosed(ReferenceProvider):
    _used = False

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        self._used = True
        return super()._from_numpy(array, place)

    def close(self) -> None:
        if self._used:
            time.sleep(1e6)
        super().close()


@member("core", "It fails when it is closed", kills=_CASE, apart=True)
class FailsWhenClosed(ReferenceProvider):
    _used = False

    def _from_numpy(self, array: npt.NDArray[Any], place: Place) -> DeviceArray:
        self._used = True
        return super()._from_numpy(array, place)

    def close(self) -> None:
        super().close()
        if self._used:
            raise OSError("driver error 709: context is destroyed")


@member("core", "It leaves a thread running", kills=_CASE, apart=True)
class LeavesThreads(_Upset):
    def upset(self) -> None:
        threading.Thread(target=time.sleep, args=(1e6,), name="stray").start()


@member("core", "It prints megabytes", kills=_CASE, apart=True)
class PrintsMegabytes(_Upset):
    def upset(self) -> None:
        for _ in range(64):
            os.write(2, b"debug: " + b"x" * (1 << 16) + b"\n")


@member("core", "It closes standard output", kills=("core.arrays_round_trip",), apart=True)
class ClosesStandardOutput(_Upset):
    def upset(self) -> None:
        sys.stdout.close()


@member("core", "It cannot be made", kills=(STARTUP,), apart=True)
class FailsWhenMade(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        raise OSError("libzoo.so.1: cannot open shared object file")


@member("core", "It hangs when it is made", kills=(STARTUP,), apart=True, limit_s=_SOON_S)
class HangsWhenMade(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        time.sleep(1e6)


@member("core", "It ends the process when it is made", kills=(STARTUP,), apart=True)
class ExitsWhenMade(ReferenceProvider):
    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        os._exit(0)


@member("core", "What it claims is no descriptor", kills=(STARTUP,), apart=True)
class ClaimsNonsense(ReferenceProvider):
    def capability(self) -> Any:
        return {"has_stream": True}
