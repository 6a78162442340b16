#!/usr/bin/env bash
# From a fresh clone to a running example. Needs Python 3.10+ and a network, and touches only .venv
# here and the cache of the checkpoint (~/.cache/sagellm-backend).
#   ./quickstart.sh ["a prompt"] [options of examples/generate.py]
#   ./quickstart.sh test [options of pytest]
#   PYTHON=python3.12 ./quickstart.sh        chooses the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv=.venv

step() { printf '\n[%s] %s\n' "$1" "$2"; }
die() {
    printf 'quickstart: %s\n' "$1" >&2
    exit 1
}

is_usable() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3 python3.10}; do
        if is_usable "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    die "no usable ${PYTHON:-Python}: 3.10 or newer with its venv module is needed
(Debian, Ubuntu: apt install python3-venv). PYTHON=/path/to/python chooses one."
}

# What an installation depends on: the place, the interpreter, the requirements and this script.
fingerprint() {
    { pwd && "$venv/bin/python" -VV && cat pyproject.toml packages/*/pyproject.toml quickstart.sh; } | cksum
}

make_venv() {
    local python
    if is_sound; then return; fi
    python=$(find_python)
    rm -rf "$venv"
    "$python" -m venv "$venv" || die "'$python -m venv' failed: see its message above"
}

is_sound() { # an environment that works, of the interpreter asked for
    local ask='import sys; print(sys.version, sys.base_prefix)' have
    have=$("$venv/bin/python" -c "import pip; $ask" 2>/dev/null) || return 1
    [ -z "${PYTHON:-}" ] || [ "$have" = "$("$PYTHON" -c "$ask" 2>/dev/null)" ]
}

pip_install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" ||
        die "pip failed: see its message above; run me again to go on"
}

install() { # $1: example or dev
    local stamp name ascend=packages/sagellm-backend-ascend
    for stamp in "$venv/.installed-dev" "$venv/.installed-$1"; do # dev holds what the example needs
        if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint)" ]; then return; fi
        rm -f "$stamp"
    done
    pip_install --quiet --upgrade "pip>=25.1"
    local -a index
    read -r -a index < <("$venv/bin/python" tools/torch_index.py) || true
    pip_install "${index[@]}" --group torch
    if [ -e /dev/davinci_manager ]; then ascend+="[torch-npu]"; fi
    local -a packages=(-e "$ascend")
    for name in core cpu cuda kunlun; do packages+=(-e "packages/sagellm-backend-$name"); done
    pip_install --quiet "${index[@]}" --group torch --group "$1" "${packages[@]}"
    fingerprint >"$stamp"
}

if [ "${1:-}" = test ]; then
    shift
    step 1/3 "Environment in $venv" && make_venv
    step 2/3 "torch, the five packages and the tools for testing" && install dev
    step 3/3 "Tests"
    exec "$venv/bin/python" -m pytest "$@"
fi

step 1/4 "Environment in $venv" && make_venv
step 2/4 "torch, the five packages and what the example needs" && install example
step 3/4 "Backends on this machine"
"$venv/bin/sagellm-backend" list
step 4/4 "A small model on nothing but the public interface"
"$venv/bin/python" examples/fetch_model.py
[ $# -gt 0 ] || set -- "What is the capital of France?"
exec "$venv/bin/python" examples/generate.py "$@"
