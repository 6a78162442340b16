"""An NPU for tests at L0: the vendor's schemas, bound by torch's own dispatcher.

Behind each stands a reference kernel that first refuses what the vendor's documents (torch_npu 2.13,
``_op_plugin_docs.py``) or this package's own rules exclude. It runs on the simulated torch device,
whose memory the host cannot touch. Nothing here is the vendor's code, and nothing proves speed.
"""
