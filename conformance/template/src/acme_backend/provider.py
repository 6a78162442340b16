"""The provider: core's torch_support does the work, this says for which device."""

import simdev  # TODO: what registers your device with torch, such as torch_npu

from sagellm_backend.dtypes import DType
from sagellm_backend.torch_support.accelerator import AcceleratorProvider


class AcmeProvider(AcceleratorProvider):
    """Every operation in plain torch, on the device of ``module``."""

    name = "acme"
    device_type = "simdev"  # TODO: as in the spec
    module = simdev.module  # TODO: your device module, such as torch.npu
    contract = (1, 0)
    simulated = True  # TODO: leave this away on hardware; reports say at which level they prove
    flush_subnormals = (DType.BF16,)  # TODO: () if your device computes with subnormal numbers
    # TODO: comm_backend = "hccl", when torch.distributed reaches your collectives by that word.
    # TODO: fast_kernels = {"rms_norm": my_rms_norm}, one after the other.
