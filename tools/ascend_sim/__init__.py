"""AscendCL over a simulated device, on which the real torch_npu runs.

torch_npu's libraries link those of CANN by name. :mod:`ascend_sim.build` compiles libraries of these
names against the headers in the torch_npu wheel: two devices in host memory, with streams on threads
of their own, events with times, memory that the host cannot read, a limit on it, and collectives
between the processes of one machine. What is torch_npu's stays torch_npu's: allocator, copies,
queue of tasks, process groups, dispatch, checks of arguments.

The vendor's kernels are not simulated: :mod:`ascend_sim.kernels` puts reference kernels before them.
Nothing here is a measure of speed, and nothing shows how an NPU computes.

Kernels in Python need the GIL on the threads of streams, which no device does. Whoever holds it gives
it up while he waits for a stream; torch_npu's queue, for which its holder may wait, waits for none.

Read from the environment when the process starts: ``ASCEND_SIM_SOC`` (``Ascend910B2``),
``ASCEND_SIM_MEMORY_MB`` per device (2048), ``ASCEND_RT_VISIBLE_DEVICES``; and to see failures,
``ASCEND_SIM_INIT_FAULT`` and ``ASCEND_SIM_SET_DEVICE_FAULT``, error codes. A device at work is lost by
:func:`ascend_sim.faults.lose`.
"""
