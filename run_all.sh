#!/usr/bin/env bash
# Sets up selfserve and regenerates its figures and tables; see ./run_all.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
Usage: ./run_all.sh [COMMAND] [--force]

  (no command)   set up, then run every notebook: all figures and tables of results/
  quick          the same on small synthetic traces, to see that everything works
  test           set up, then linters, types, tests and every notebook in quick mode
  setup          make .venv and install the pinned packages; instant when nothing changed
  retrain        train the ten nets of the controller anew, into results/controllers (an hour; what is there is kept)
  lab [ARGS]     open JupyterLab on the notebooks; ARGS go to jupyter lab
  --force        run notebooks again even if nothing they depend on has changed
  --help         this text

Environment: PYTHON (the interpreter to use), TORCH_INDEX (a package index to prefer for torch, for instance
PyTorch's own with CPU builds, which are 5 GB smaller), SELFSERVE_TRACES (a folder with the real traces),
SELFSERVE_RESULTS (where results go, default results/).
TEXT
}

say() { printf '%s\n' "$*"; }
die() { printf 'run_all.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

unset PYTHONHOME PYTHONPATH
root=$PWD
venv=$root/.venv
python=$venv/bin/python
var=$venv/var   # whatever tools would otherwise leave in the user's home

suits() {   # PYTHON: from 3.11.2 to 3.13, and able to make virtual environments
    [ "$("$1" -c 'import sys, ensurepip, venv; print((3, 11, 2) <= sys.version_info[:3] < (3, 14))' 2>/dev/null)" = True ]
}

pick_python() {
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" || die "PYTHON=$PYTHON is not a Python from 3.11.2 to 3.13 with the venv module"
        base=$PYTHON; return
    fi
    for name in python3.11 python3.12 python3.13 python3 python; do
        while IFS= read -r base; do
            if [ -n "$base" ] && suits "$base"; then return; fi
        done <<<"$(type -aP "$name" || true)"
    done
    die "no Python from 3.11.2 to 3.13 with the venv module was found on PATH; install one (on Debian: python3 and python3-venv) or set PYTHON"
}

wanted_stamp() {   # what the installed packages depend on
    "$python" - "$root" "${TORCH_INDEX:-}" <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(repr(sys.argv[1:]).encode())
for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt", "pyproject.toml"):
    digest.update(pathlib.Path(name).read_bytes())
print(sys.version.split()[0], sys.argv[1], digest.hexdigest())
PY
}

pip_install() {
    local quiet=-q options=()
    [ -t 1 ] && quiet=--progress-bar=on
    # A pip cache that is there is used; none is started in the user's home.
    [ -n "${PIP_CACHE_DIR:-}" ] || [ -d "$("$python" -m pip cache dir 2>/dev/null)" ] || options=(--no-cache-dir)
    if [ -n "${TORCH_INDEX:-}" ]; then
        export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:+$PIP_EXTRA_INDEX_URL }$TORCH_INDEX"
    fi
    "$python" -m pip install --disable-pip-version-check "$quiet" ${options[@]+"${options[@]}"} "$@"
}

setup() {
    local stamp=$venv/.selfserve-stamp wanted
    if ! suits "$python" || { [ -e "$stamp" ] && ! grep -qF " $root " "$stamp"; }; then   # none, or made for another place
        pick_python
        say "Making .venv with Python $("$base" -c 'import sys; print(sys.version.split()[0])') ($base)"
        "$base" -m venv --clear "$venv"
    fi
    wanted=$(wanted_stamp)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "Set-up is current: Python ${wanted%% *} in .venv"
    else
        say "Installing the pinned packages into .venv with Python ${wanted%% *} (one to a few minutes, 2 to 7 GB)"
        printf '%s unfinished\n' "${wanted% *}" >"$stamp"
        pip_install setuptools -r requirements.txt -r requirements-dev.txt || die "the packages could not be installed; see pip's message above"
        pip_install --no-build-isolation --no-deps -e . || die "the package could not be installed; see pip's message above"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    mkdir -p "$var/cache" "$var/jupyter/config/labconfig"
    printf '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}\n' >"$var/jupyter/config/labconfig/page_config.json"
}

enter() {   # the environment every tool runs in: this .venv, none of the user's own settings
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH PYTHONHASHSEED=0 PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1
    export XDG_CACHE_HOME=$var/cache MPLCONFIGDIR=$var/matplotlib IPYTHONDIR=$var/ipython
    export JUPYTER_CONFIG_DIR=$var/jupyter/config JUPYTER_DATA_DIR=$var/jupyter/data JUPYTER_RUNTIME_DIR=$var/jupyter/run
}

find_traces() {   # the published traces stay where `traces fetch` puts them, also in a run with caches of its own
    [ -n "${SELFSERVE_TRACES:-}" ] || SELFSERVE_TRACES=$("$python" -c 'import pooch; print(pooch.os_cache("selfserve"))')
    export SELFSERVE_TRACES
}

regenerate() {
    python -m selfserve traces fetch
    python -m selfserve notebooks "$@"
}

run_tests() {
    export SELFSERVE_RESULTS=$var/test-results   # tests leave the user's results alone
    say "ruff"; python -m ruff check .; python -m ruff format --check .
    say "mypy"; python -m mypy
    say "notebooks, quick"; python -m selfserve notebooks --quick --force   # also compiles the kernels that tests use
    say "pytest"; python -m pytest -q -n logical --maxprocesses 4 --dist worksteal
}

retrain() {   # the seeds that are shipped in src/selfserve/controllers; one that is there already is kept
    local folder=${SELFSERVE_RESULTS:-results}/controllers seed
    mkdir -p "$folder"
    for seed in 0 1 2 3 4 5 6 7 8 9; do
        [ -e "$folder/net_$seed.safetensors" ] || echo $seed
    done | LOKY_MAX_CPU_COUNT=1 xargs -r -P "$(getconf _NPROCESSORS_ONLN)" -I SEED \
        python -m selfserve train --what net --seed SEED --out "$folder/net_SEED.safetensors"
}

open_lab() {
    local options=(--notebook-dir="$root" --LabApp.default_url=/lab/tree/notebooks)
    [ "$(id -u)" != 0 ] || options+=(--allow-root)
    exec python -m jupyter lab "${options[@]}" "$@"
}

command=full force=()
case ${1:-} in
    -h|--help|help) usage; exit 0 ;;
    lab) command=lab; shift ;;
    *)
        for word in "$@"; do
            case $word in
                --force) force=(--force) ;;
                setup|quick|test|retrain) [ "$command" = full ] || die "one command at a time, not $command and $word" 2; command=$word ;;
                *) die "unknown argument '$word'; ./run_all.sh --help lists what there is" 2 ;;
            esac
        done ;;
esac
case $command in setup|test|retrain) [ ${#force[@]} = 0 ] || die "--force goes with quick or with the full run, not with $command" 2 ;; esac

setup
case $command in full|lab|retrain) find_traces ;; esac
enter
case $command in
    setup) ;;
    full)  regenerate ${force[@]+"${force[@]}"} ;;
    quick) python -m selfserve notebooks --quick ${force[@]+"${force[@]}"} ;;
    test)  run_tests ;;
    retrain) python -m selfserve traces fetch; retrain ;;
    lab)   open_lab "$@" ;;
esac
