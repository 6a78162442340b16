"""The ``ascend`` backend for Huawei NPUs, by torch_npu."""
