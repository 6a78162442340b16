"""Kernels written in Python and compiled for this processor by Numba, once on a machine.

``row_linear.py`` and its like hold the kernels, and ``storage.py`` what they may call. ``build.py``
compiles one in a process of its own, ``image.py`` makes code of that which can be mapped and called
as it is, ``cache.py`` keeps it, ``kernel.py`` hands it out, and ``team.py`` runs it on torch's own
threads. A process that computes imports neither Numba nor LLVM: they cost it 0.3 s and 50 to 100 MB.

Everything works without all this: a kernel that cannot be had is ``None``, and plain torch computes.
Linux on x86-64 only, where it was measured.
"""
