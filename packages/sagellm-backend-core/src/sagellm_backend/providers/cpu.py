"""The CPU's provider under the module name of Protocol v0.1.

Raises :class:`~sagellm_backend.errors.PackageMissingError`, an ``ImportError``, where
sagellm-backend-cpu is not installed.
"""

from sagellm_backend import CPUBackendProvider, create_cpu_backend

__all__ = ["CPUBackendProvider", "create_cpu_backend"]
