"""The check of our files as an import, to stand before the imports that fail without it.

Where isagellm-backend was installed last, its ``__init__`` runs instead of ours; it imports our
``base``, which imports this first.
"""

from __future__ import annotations

from sagellm_backend_installation import require_whole

require_whole()
