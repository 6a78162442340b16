"""Which kernels beside torch's are asked for, by ``SAGELLM_CUDA_KERNELS``."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sagellm_backend.errors import InvalidArgumentError

VARIABLE = "SAGELLM_CUDA_KERNELS"
WORDS = ("compiled", "flashinfer", "torch")


def kernels(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The words of the variable, which commas divide; ``torch`` asks for nothing.

    Raises :class:`InvalidArgumentError` for any other word.
    """
    given = [word.strip() for word in environ.get(VARIABLE, "").split(",")]
    found = frozenset(word for word in given if word)
    unknown = sorted(found.difference(WORDS))
    if unknown:
        raise InvalidArgumentError(
            f"{VARIABLE} asks for {', '.join(map(repr, unknown))}, which are no kernels.",
            hint=f"There are {', '.join(WORDS)}.",
        )
    return found - {"torch"}
