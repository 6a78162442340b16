#!/usr/bin/env bash
# Examine a backend on a machine that has torch and no network.
#
# Where there is a network, and `nox -s build` has filled dist/:
#   conformance/run_on_device.sh pack WHEELS [--python 3.12] [--dist dist]
# On the machine, with that folder and this file:
#   run_on_device.sh run WHEELS --backend cuda [--out DIR] [-- options of `conformance run`]
#
# The second makes an environment beside the reports, over the packages of $PYTHON (python3), with
# the carried wheels and nothing from elsewhere. It runs the suite with the published seed and with
# one of its own, and leaves in DIR ($OUT, or conformance-reports) report.json, junit.xml and
# report.html of the first, the same with -2 of the second, verdict.txt, and machine.txt, which says
# what it ran on. It ends with 0 if both runs are conformant.
set -euo pipefail

fail() {
  echo "run_on_device.sh: $1" >&2
  exit 2
}

pack() {
  local wheels=$1 version='' dist=dist
  shift
  while (($#)); do
    case $1 in
      --python) version=$2 ;;
      --dist) dist=$2 ;;
      *) fail "pack has no option $1" ;;
    esac
    shift 2
  done
  [[ -n $version ]] || version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  compgen -G "$dist/sagellm_backend_core-*.whl" >/dev/null ||
    fail "$dist holds no wheel of sagellm-backend-core; run \`nox -s build\` first"
  mkdir -p "$wheels"
  cp "$dist"/sagellm_backend_*.whl "$wheels/"
  # What core[conformance] asks for, for the machine's Python; torch is there already.
  local platforms=()
  for one in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${one}_$(uname -m)")
  done
  "$python" -m pip download --quiet --dest "$wheels" --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" \
    'ml_dtypes>=0.4' 'numpy>=1.24' 'rich>=13' 'hypothesis>=6'
  du -sh "$wheels"
}

run() {
  local wheels=$1 backend='' out=${OUT:-conformance-reports}
  shift
  while (($#)); do
    case $1 in
      --backend) backend=$2 ;;
      --out) out=$2 ;;
      --) break ;;
      *) fail "run has no option $1; those of the suite stand behind --" ;;
    esac
    shift 2
  done
  (($#)) && shift
  [[ -n $backend ]] || fail "name the backend: --backend cuda"
  wheels=$(realpath "$wheels")
  mkdir -p "$out"
  out=$(realpath "$out")
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  prepare "$wheels" "$backend"
  describe "$wheels" "$backend" >"$out/machine.txt"

  local worst=0 number=''
  for seed in 20261 random; do
    echo "== $backend, seed $seed"
    (cd "$work" && "$work/venv/bin/sagellm-backend" conformance run --backend "$backend" \
      --seed "$seed" --out "$work/reports$number" "$@") || worst=1
    for kind in report.json junit.xml report.html; do
      local made="$work/reports$number/$backend/$kind"
      [[ -f $made ]] && cp "$made" "$out/${kind%.*}$number.${kind##*.}"
    done
    number=-2
  done
  "$work/venv/bin/sagellm-backend" conformance verify "$out/report.json" "$out/report-2.json" \
    >"$out/verdict.txt" 2>&1 || true
  cat "$out/verdict.txt"
  return $worst
}

# The environment sees the packages of $PYTHON through a path file: that serves where $PYTHON is
# itself of an environment, which --system-site-packages would look past.
prepare() {
  local wheels=$1 package=sagellm_backend_$2
  [[ $2 == dcu ]] && package=sagellm_backend_cuda
  local chosen=("$wheels"/sagellm_backend_core-*.whl)
  [[ $2 == reference ]] || chosen+=("$wheels/$package"-*.whl)
  for wheel in "${chosen[@]}"; do
    [[ -f $wheel ]] || fail "$wheel is missing"
  done
  "$python" -m venv --without-pip "$work/venv"
  local site
  site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$python" -c 'import site, sys
for folder in [*site.getsitepackages(), site.getusersitepackages()]: print(folder)' \
    >"$site/of_this_machine.pth"
  # What the machine has is kept: another NumPy could be one that its torch cannot use.
  "$python" -m pip --python "$work/venv" install --quiet --no-index --no-deps \
    --ignore-installed "${chosen[@]}"
  "$python" -m pip --python "$work/venv" install --quiet --no-index --find-links "$wheels" \
    'ml_dtypes>=0.4' 'numpy>=1.24' 'rich>=13' 'hypothesis>=6'
}

describe() {
  date -u '+%Y-%m-%d %H:%M UTC'
  uname -srm
  "$work/venv/bin/python" -c 'import sys; print("Python", sys.version)'
  "$work/venv/bin/python" -c 'from importlib.metadata import distributions
wanted = "torch torch-npu triton cuda-bindings flashinfer-python paddlepaddle-xpu numpy".split()
found = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in distributions()}
for name in wanted: print(name, found.get(name, "absent"))'
  env | grep -E '^(SAGELLM_|[A-Z]+_VISIBLE_DEVICES|PYTORCH_)' || true
  "$work/venv/bin/sagellm-backend" list || true
  if [[ $2 == cuda ]]; then nvidia-smi || true; fi
  (cd "$1" && sha256sum sagellm_backend_*.whl)
}

python=${PYTHON:-python3}
case ${1:-} in
  pack | run) (($# >= 2)) || fail "$1 needs the folder of the wheels" ;;
  *) fail "use: pack WHEELS, or run WHEELS --backend NAME; this file's head says more" ;;
esac
"$@"
