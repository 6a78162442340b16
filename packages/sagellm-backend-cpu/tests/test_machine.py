"""How much memory this process may use, and has left."""

from __future__ import annotations

import os

import pytest

from sagellm_backend.cpu.machine import memory

KIB = 1024
GIB = 1 << 30


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def installed():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_free_is_what_the_kernel_calls_available(tmp_path):
    write(tmp_path, "proc/meminfo", "MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 5 kB\n")
    assert memory(tmp_path) == (installed(), 5 * KIB)


def test_where_nothing_is_said_of_free_memory_it_is_the_total(tmp_path):
    assert memory(tmp_path) == (installed(), installed())


@pytest.mark.parametrize(
    ("usage", "free"), [(0, GIB), (GIB // 4, 3 * GIB // 4), (2 * GIB, 0), (None, GIB)]
)
def test_a_control_group_leaves_its_limit_less_its_usage(tmp_path, usage, free):
    write(tmp_path, "proc/self/cgroup", "0::/pod/box\n")
    write(tmp_path, "proc/meminfo", f"MemAvailable: {2 * GIB // KIB} kB\n")
    write(tmp_path, "sys/fs/cgroup/pod/memory.max", f"{GIB}\n")
    write(tmp_path, "sys/fs/cgroup/pod/box/memory.max", "max\n")
    if usage is not None:
        write(tmp_path, "sys/fs/cgroup/pod/memory.current", f"{usage}\n")
    assert memory(tmp_path) == (GIB, free)


def test_a_roomy_control_group_does_not_make_memory(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "proc/meminfo", "MemAvailable: 7 kB\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{1 << 60}\n")
    assert memory(tmp_path) == (installed(), 7 * KIB)
