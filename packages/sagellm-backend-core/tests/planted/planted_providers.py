"""Factories of providers that do not get as far as a case, and some that do."""

import os
import time
from pathlib import Path

from sagellm_backend.errors import UnavailableError
from sagellm_backend.reference.provider import ReferenceProvider


def sound(config=None):
    return ReferenceProvider(config)


def raises(config=None):
    raise RuntimeError("planted at construction")


def unavailable(config=None):
    raise UnavailableError("no such card")


def exits(config=None):
    os._exit(0)


def hangs(config=None):
    time.sleep(1000)


class Wordless(ReferenceProvider):
    def _capability(self):
        raise ValueError("claims nothing")


class Unclosable(ReferenceProvider):
    def close(self):
        super().close()
        if self.config.device == 0:
            raise OSError("does not close")


class Counting(ReferenceProvider):
    """Cannot be built again once a process was lost."""

    loss = RuntimeError("the device is gone")

    def __init__(self, config=None):
        super().__init__(config)
        if Path(os.environ["PLANTED_MARK"]).exists():
            raise self.loss


class Leaving(Counting):
    loss = UnavailableError("the card was pulled")
