"""A case that waits to be interrupted."""

import os
import time
from pathlib import Path

from sagellm_backend.conformance.case import case


@case("core")
def waits(exam):
    """It says who it is and never ends."""
    Path(os.environ["PLANTED_PID_FILE"]).write_text(str(os.getpid()))
    time.sleep(1000)
