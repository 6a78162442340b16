"""Every method that the provider calls on an object of Paddle's is there, with arguments that fit."""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import functools
import io
import itertools
import json
import logging
import os
import platform
import queue
import re
import secrets
import socket
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import paddle
from paddle.base import core
from paddle_calls import fits, named_in, signatures_of

from sagellm_backend import frameworks
from sagellm_backend.attention import AttentionMetadata
from sagellm_backend.base import BackendProvider
from sagellm_backend.devices import Sighting
from sagellm_backend.dtypes import DType
from sagellm_backend.kunlun import spec
from sagellm_backend.kv import KVPool
from sagellm_backend.memory import MemoryLedger, MemoryLedgers
from sagellm_backend.ops.dispatch import KernelTable

SOURCES = sorted(Path(spec.__file__).parent.glob("*.py"))
PADDLES = (paddle.Tensor, paddle.device.Stream, paddle.device.Event, core.Place, core.task)
"""The types of Paddle's objects that the provider holds, beside groups, which test_calls has."""

OTHERS = (
    *(
        str,
        bytes,
        dict,
        list,
        tuple,
        set,
        int,
        float,
        object,
        ast,
        contextlib,
        functools,
        itertools,
    ),
    *(json, logging, logging.Logger, np, np.ndarray, os, os.environ, platform, re, re.Pattern),
    *(queue.SimpleQueue, secrets, socket, socket.socket, threading, threading.Thread, time),
    *(concurrent.futures.Future, warnings, weakref, Path, DType, spec.Probe, Sighting, frameworks),
    io.BufferedReader,
    *(AttentionMetadata, BackendProvider, KVPool, KernelTable, MemoryLedger, MemoryLedgers),
)
"""What else has methods there."""

WITHOUT_SIGNATURE = {
    *("copy_", "data_ptr", "is_contiguous", "is_dense", "numpy", "_is_shared_buffer_with"),
    "_offset",
}
"""Methods of tensors in C, of which Paddle tells the name only."""


def methods_in(path):
    """(name, call) of every call of a method, but of Paddle's own modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {ast.unparse(node) for _, node in named_in(path)}
    for node in ast.walk(tree):
        method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if method and ast.unparse(node.func) not in named:
            yield node.func.attr, node


@functools.cache
def own_names():
    """What the provider itself defines, arguments that are called included."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def paddles(name):
    return [getattr(kind, name) for kind in PADDLES if hasattr(kind, name)]


def elsewhere(name):
    return name in own_names() or any(hasattr(kind, name) for kind in OTHERS)


def test_no_method_is_called_that_nobody_has():
    called = {name for path in SOURCES for name, _ in methods_in(path)}
    assert not {name for name in called if not paddles(name) and not elsewhere(name)}


def test_methods_of_paddles_objects_take_what_they_are_given():
    checked, unknown = 0, set()
    for path in SOURCES:
        for name, call in methods_in(path):
            found = paddles(name)
            if not found or elsewhere(name):
                continue
            signatures = [one for method in found for one in _of_objects(method)]
            if not signatures:
                unknown.add(name)
                continue
            assert fits(call, signatures), f"{path.name}:{call.lineno}: {ast.unparse(call)}"
            checked += 1
    assert checked > 10
    assert unknown <= WITHOUT_SIGNATURE


def _of_objects(method):
    """Signatures without ``self``."""
    for signature in signatures_of(method):
        given = list(signature.parameters.values())
        named = given and given[0].name in {"self", "x"}
        yield signature.replace(parameters=given[1:] if named else given)


def test_what_only_xpus_streams_have_is_called_as_paddle_itself_calls_it():
    theirs = Path(paddle.device.__file__).read_text(encoding="utf-8")
    ours = Path(spec.__file__).with_name("runtime.py").read_text(encoding="utf-8")
    call = "core._xpu_set_current_stream(stream.stream_base.idx)"
    assert call in ours
    assert call in theirs


def test_a_method_of_another_name_or_of_other_arguments_is_found(tmp_path):
    path = tmp_path / "written.py"
    path.write_text("tensor.index_put_at(1)\nevent.record(stream, 2)\n")
    (wrong, _), (record, call) = methods_in(path)
    assert not paddles(wrong)
    assert not elsewhere(wrong)
    assert not fits(call, [one for found in paddles(record) for one in _of_objects(found)])
