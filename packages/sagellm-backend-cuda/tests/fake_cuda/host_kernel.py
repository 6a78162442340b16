"""A CUDA kernel's source as C++ for this machine: every block and every thread, one after another."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

SHIM = """
struct Place { int x, y, z; };
static Place blockIdx, threadIdx, blockDim;
struct uint2 { unsigned int x, y; };
struct uint4 { unsigned int x, y, z, w; };
#define __device__
#define __global__
"""
LOOP = """
extern "C" void run(const int* grid, int threads, void** p, const int* n) {
  blockDim.x = threads;
  for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
        kv_write((const char*)p[0], (const char*)p[1], (char*)p[2], (char*)p[3], p[4], n[0], n[1],
                 n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14]);
}
"""


def build(source, folder):
    """A stand-in for what ``torch.cuda._compile_kernel`` gives; its calls take CPU tensors."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    assert compiler, "a C++ compiler is needed"
    file, made = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(SHIM + source + LOOP)
    command = [compiler, "-O1", "-shared", "-fPIC", "-fsanitize=alignment", "-static-libubsan"]
    command += ["-fno-sanitize-recover=alignment", str(file), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    run = ctypes.CDLL(str(made)).run

    def kernel(grid=(1, 1, 1), block=(1, 1, 1), args=None, shared_mem=0, stream=None):
        arrays, numbers = args[:5], args[5:]
        assert len(numbers) == 15
        assert all(type(one) is int and abs(one) < 1 << 31 for one in numbers)
        pointers = (ctypes.c_void_p * 5)(*(one.data_ptr() for one in arrays))
        run((ctypes.c_int * 3)(*grid), block[0], pointers, (ctypes.c_int * 15)(*numbers))

    return kernel
