"""``python -m sagellm_backend.conformance``: the same as ``sagellm-backend conformance``."""

import sys

from sagellm_backend.cli import main

if __name__ == "__main__":
    sys.exit(main(["conformance", *sys.argv[1:]]))
