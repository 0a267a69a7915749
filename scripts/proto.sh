#!/bin/sh
# Generates the Python code of proto/ into generated/; with --check, only tells whether generated/ is up to date.
set -eu

cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH # the mypy plugins of protoc are found there

generate() {
    python -m grpc_tools.protoc -Iproto \
        --python_out="$1" --grpc_python_out="$1" \
        --mypy_out=quiet:"$1" --mypy_grpc_out=quiet:"$1" \
        proto/agentrpc/v1/*.proto
    # protoc writes these for every file; they say something only where there is a service.
    for module in "$1"/agentrpc/v1/*_pb2_grpc.py; do
        grep -q '^class .*Stub' "$module" || rm "$module" "${module}i"
    done
}

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"

if [ "${1:-}" = --check ]; then
    # These three are written by hand.
    diff -rq -x __init__.py -x py.typed -x __pycache__ generated/agentrpc "$fresh/agentrpc" >"$fresh/diff" || {
        cat "$fresh/diff"
        echo "error: generated/ does not match proto/: run make proto and commit the result" >&2
        exit 1
    }
else
    mkdir -p generated/agentrpc/v1
    rm -f generated/agentrpc/v1/*_pb2*.py generated/agentrpc/v1/*_pb2*.pyi
    cp "$fresh"/agentrpc/v1/* generated/agentrpc/v1/
    touch generated/agentrpc/__init__.py generated/agentrpc/v1/__init__.py generated/agentrpc/py.typed
fi
