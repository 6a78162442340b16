"""``python -m sagellm_backend.cli``: the same as ``sagellm-backend``."""

import sys

from sagellm_backend.cli import main

sys.exit(main())
