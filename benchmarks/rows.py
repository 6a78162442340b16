"""The rows that need this repository: whole models by its example, and the published engine.

``sagellm-backend bench --also benchmarks`` adds them.
"""

from __future__ import annotations

import generation
import published_engine

generation.add_rows()
published_engine.add_rows()
