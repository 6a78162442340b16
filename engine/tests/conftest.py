"""The engine speaks at length of every request; a test says what it wants to know."""

from __future__ import annotations

import logging

from transformers.utils import logging as transformers_logging

logging.disable(logging.INFO)
transformers_logging.disable_progress_bar()
