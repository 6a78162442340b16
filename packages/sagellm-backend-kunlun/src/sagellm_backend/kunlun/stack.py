"""What stands between an XPU and this process: which Paddle is installed, and for which machine.

Read from metadata and files. No framework is imported, no driver started.
"""

from __future__ import annotations

import platform
import sys

from sagellm_backend import frameworks

Fault = tuple[str, str]
"""What is wrong, and what to do."""

INSTALL = (
    "pip install paddlepaddle-xpu -i https://www.paddlepaddle.org.cn/packages/stable/xpu-p800/"
)
CPU_BUILD = "paddlepaddle==3.3.1"
"""What other places than XPUs are tested on."""

XPU_PYTHON = (3, 10)
"""The Python that the vendor's index has wheels for."""

XPU_MACHINE = "x86_64"


def xpu_version() -> str | None:
    """The installed XPU build of Paddle."""
    return frameworks.version_of("paddlepaddle-xpu")


def xpu_fault() -> Fault | None:
    """Why XPUs cannot be used by what is installed."""
    # Both distributions install the module `paddle`, so only metadata tells them apart.
    xpu, plain = xpu_version(), frameworks.version_of("paddlepaddle")
    if xpu and plain:
        return (
            f"paddlepaddle {plain} and paddlepaddle-xpu {xpu} overwrite one another's files",
            f"pip uninstall paddlepaddle paddlepaddle-xpu, then {INSTALL}",
        )
    if xpu and frameworks.is_installed("paddle"):
        return None
    if plain:
        remedy = f"pip uninstall paddlepaddle, then {_install()}"
        return f"paddlepaddle {plain} cannot drive an XPU: it is not the XPU build", remedy
    if frameworks.is_installed("torch_xmlir"):
        return (
            "xpytorch (torch_xmlir) is installed, and this backend speaks Paddle",
            _install(),
        )
    return _wrong_python() or ("paddlepaddle-xpu is not installed", INSTALL)


def cpu_fault() -> Fault | None:
    """Why Paddle's other places cannot be used by what is installed."""
    if frameworks.is_installed("paddle"):
        return None
    return "Paddle is not installed", f"pip install {CPU_BUILD}"


def _wrong_python() -> Fault | None:
    if sys.version_info[:2] == XPU_PYTHON and platform.machine() == XPU_MACHINE:
        return None
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = ".".join(map(str, XPU_PYTHON))
    return (
        f"paddlepaddle-xpu is not installed, and has no wheel for Python {version} on "
        f"{platform.machine()}: there are some for Python {wanted} on {XPU_MACHINE} only",
        f"In an environment of Python {wanted} on {XPU_MACHINE}: {INSTALL}",
    )


def _install() -> str:
    fault = _wrong_python()
    return fault[1] if fault else INSTALL
