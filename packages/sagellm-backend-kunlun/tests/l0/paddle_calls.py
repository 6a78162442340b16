"""Every use of Paddle in the provider's sources, and what Paddle says of the functions called."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from keyword import iskeyword

UNKNOWN = object()
"""An argument of which only the place matters."""


def aliases_of(tree):
    """What a module calls Paddle's modules: {alias: module}."""
    # `paddle` is Paddle in every file, also where a function imports it by name.
    found = {"self._pg": "paddle.base.core.ProcessGroup", "paddle": "paddle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paddle":
            found |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return found


def named_in(path):
    """(name in Paddle, node) of every attribute of Paddle in a file; aliases are resolved.

    The methods of a process group are those of ``paddle.base.core.ProcessGroup``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = aliases_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            head = next((word for word in aliases if text.startswith(f"{word}.")), None)
            if head and re.fullmatch(r"[\w.]+", text):
                yield aliases[head] + text[len(head) :], node


def calls_in(path):
    """(name in Paddle, call) of every call of Paddle in a file."""
    names = {ast.unparse(node): name for name, node in named_in(path)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield names[ast.unparse(node.func)], node


def resolve(name):
    """The object of a dotted name. Raises AttributeError where Paddle has none."""
    words = name.split(".")
    found = import_module(words[0])
    for word in words[1:]:
        found = getattr(found, word)
    return found


def signatures_of(function):
    """Its signatures, from what pybind11 writes into docstrings where there is no other."""
    try:
        return [inspect.signature(function)]
    except (TypeError, ValueError):
        text = (function.__init__ if inspect.isclass(function) else function).__doc__ or ""
        return [found for found in map(_written, text.splitlines()) if found]


def _written(line):
    """The signature in ``1. send(self: Group, tensor: object, dst: int = 0) -> Task``."""
    arguments = re.match(r"(?:\d+\. )?\w+\((.*)\) -> ", line)
    if not arguments:
        return None
    listed = re.findall(r"(?:^|, )(\w+): [^=]*?( = [^,]+)?(?=, \w+:|$)", arguments[1])
    return inspect.Signature(
        [
            inspect.Parameter(
                f"{name}_" if iskeyword(name) else name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=None if default else inspect.Parameter.empty,
            )
            for name, default in listed
            if name != "self"
        ]
    )


def fits(call, signatures):
    """Whether a call fits one of the signatures, or gives its arguments as a whole."""
    if any(isinstance(item, ast.Starred) for item in call.args):
        return True
    named = {item.arg: UNKNOWN for item in call.keywords if item.arg}
    for signature in signatures:
        try:
            signature.bind(*[UNKNOWN] * len(call.args), **named)
        except TypeError:
            continue
        return True
    return False
