"""Where the provider computes: XPUs, unless the environment names other Paddle places."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagellm_backend.errors import InvalidArgumentError

VARIABLE = "SAGELLM_KUNLUN_PLACES"
"""Environment variable: the Paddle places to use instead of XPUs, such as ``cpu`` or
``kunlun_sim:0,kunlun_sim:1``. They are for tests: what runs there proves no hardware."""

XPU = "xpu"
CPU = "cpu"

_PLACE = re.compile(r"([a-z_][a-z0-9_]*):(0|[1-9][0-9]{0,3})")


def places(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The places that the environment names, as device strings; empty where it names none.

    Raises :class:`InvalidArgumentError` unless they are of one type and numbered from 0.
    """
    value = environ.get(VARIABLE, "").strip()
    if not value:
        return ()
    if value == CPU:
        return (f"{CPU}:0",)
    found = tuple(part.strip() for part in value.split(","))
    matches = [_PLACE.fullmatch(place) for place in found]
    kinds = {match[1] for match in matches if match}
    numbered = [int(match[2]) for match in matches if match] == list(range(len(found)))
    if None in matches or len(kinds) != 1 or not numbered or (kinds == {CPU} and len(found) > 1):
        raise InvalidArgumentError(
            f"{VARIABLE}={value!r} does not name places.",
            hint="Write cpu, or places of one type numbered from 0: kunlun_sim:0,kunlun_sim:1.",
        )
    return found


def device_type_of(found: tuple[str, ...]) -> str:
    """What Paddle calls the devices: ``xpu`` where no places are named."""
    return found[0].partition(":")[0] if found else XPU
