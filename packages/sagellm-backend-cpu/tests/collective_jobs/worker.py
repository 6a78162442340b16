"""One rank of a job, in a process of its own.

Usage: worker.py JOB RANK WORLD INIT_METHOD FOLDER. Under torchrun RANK is ``-``. What became of each
check goes to FOLDER/<rank>.json; the first that fails ends the job, for the ranks are out of step
then.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

from here import Here

ONE_GROUP = {"pair", "trio"}


def main(job, rank, world, init_method, folder):
    here = Here(
        int(os.environ["RANK"] if rank == "-" else rank), int(world), init_method, Path(folder)
    )
    outcomes = {}
    name = "joining"
    try:
        given = (here, here.join()) if job in ONE_GROUP else (here,)
        for check in import_module(job).CHECKS:
            name = check.__name__
            check(*given)
            outcomes[name] = "ok"
    except BaseException:
        outcomes[name] = traceback.format_exc()
        raise
    finally:
        (here.folder / f"{here.rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
