"""The ``kunlun`` backend for Kunlun XPUs, by paddlepaddle-xpu."""
