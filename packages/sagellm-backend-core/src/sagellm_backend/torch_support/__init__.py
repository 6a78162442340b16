"""What every torch device shares; needs the extra ``[torch]``.

A provider for a new torch device subclasses :class:`~sagellm_backend.torch_support.provider.TorchProvider`
and registers the kernels that it can do better.
"""
