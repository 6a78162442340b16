"""Groups of processes over NCCL, and over RCCL on a DCU. None of this has run on such hardware."""

from __future__ import annotations

import os

from sagellm_backend.collectives import Work
from sagellm_backend.torch_support.comm_waits import WaitingCommunicator
from sagellm_backend.torch_support.comm_work import TorchWork


class NCCLCommunicator(WaitingCommunicator):
    """A group over NCCL.

    A peer that does not come is an error, for which collectives wait on the host: the watchdog of
    torch's own groups would end the process. In one that is started with
    ``TORCH_NCCL_BLOCKING_WAIT=0`` groups are torch's own: collectives are ordered on their streams
    and can be captured.
    """

    waits = ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")

    def _await(self, operation: str, work: Work) -> None:
        if os.environ.get(self.waits[0]) == "0":
            work.wait()
        else:
            super()._await(operation, work)

    def _give_up(self, work: Work) -> None:
        # torch's own wait aborts the communicator, whose kernel would go on for ever.
        if isinstance(work, TorchWork):
            work.abandon()
