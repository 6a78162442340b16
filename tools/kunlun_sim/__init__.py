"""A Kunlun XPU simulated for Paddle; see README.md."""
