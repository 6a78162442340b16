"""A torch device that is not the CPU, on any machine: ``simdev``, two of them, in host memory.

Importing this registers the device with torch (as PrivateUse1) and :mod:`simdev.module` as
``torch.simdev``. Tensors lie in memory that the host cannot touch: addresses carry a bit that no
process may use. Copies run on the threads of streams, in their order; kernels are the CPU's, with
copies before and after. Memory is cached per stream and limited (``SIMDEV_MEMORY_MB``, 1024).

For tests and for trying the vendor template. It is no measure of speed, and it shares torch's one
PrivateUse1 slot: a process has either this or another such device.
"""

from __future__ import annotations

import torch

from simdev import module
from simdev.build import library

if torch._C._get_privateuse1_backend_name() != "simdev":  # noqa: SLF001 - torch has no other way
    torch.ops.load_library(library())
    torch.utils.rename_privateuse1_backend("simdev")
    torch.ops.simdev.register()
    torch._register_device_module("simdev", module)  # noqa: SLF001 - the documented entry
    torch.utils.generate_methods_for_privateuse1_backend()
