"""The rows that need this repository: compiled kernels, whole models, the published engine.

``sagellm-backend bench --also benchmarks`` adds them.
"""

from __future__ import annotations

import compiled_kernels
import generation
import published_engine

compiled_kernels.add_rows()
generation.add_rows()
published_engine.add_rows()
