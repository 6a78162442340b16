"""The signatures of flashinfer that we call, read from its sources: no import, no CUDA needed.

``python flashinfer_snapshot.py FOLDER`` prints them for the package ``flashinfer`` in FOLDER, as
``flashinfer_signatures.txt`` keeps them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

CALLED = {
    "norm/__init__.py": ("rmsnorm",),
    "activation.py": ("silu_and_mul",),
    "rope.py": ("apply_rope_with_cos_sin_cache",),
    "decode.py": tuple(
        f"BatchDecodeWithPagedKVCacheWrapper.{name}"
        for name in ("__init__", "plan", "_plan_impl", "run")
    ),
    "prefill.py": tuple(
        f"BatchPrefillWithPagedKVCacheWrapper.{name}" for name in ("__init__", "plan", "run")
    ),
}


def signatures(package):
    """``name(arguments)`` without annotations, one string each."""
    for file, names in CALLED.items():
        found = dict(_functions(ast.parse((package / file).read_text(encoding="utf-8"))))
        for name in names:
            yield f"{name}({found[name]})"


def _functions(tree, prefix=""):
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{node.name}.")
        if isinstance(node, ast.FunctionDef):
            if any("overload" in ast.unparse(one) for one in node.decorator_list):
                continue
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
            yield f"{prefix}{node.name}", ast.unparse(node.args)


if __name__ == "__main__":
    print("\n".join(signatures(Path(sys.argv[1]) / "flashinfer")))
