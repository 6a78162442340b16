"""The ``cuda`` backend for NVIDIA GPUs, and ``dcu`` for Hygon DCUs."""
