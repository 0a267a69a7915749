#!/bin/sh
# Generates the Python code and the descriptors of proto/ into generated/; with --check, only tells whether generated/
# is up to date; with --protoset, writes only the descriptors.
set -eu

cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH # the mypy plugins of protoc are found there
protoset=agentrpc/v1/agentrpc.binpb

generate() {
    python -m grpc_tools.protoc -Iproto \
        --python_out="$1" --grpc_python_out="$1" \
        --mypy_out=quiet:"$1" --mypy_grpc_out=quiet:"$1" \
        proto/agentrpc/v1/*.proto
    # protoc writes these for every file; they say something only where there is a service.
    for module in "$1"/agentrpc/v1/*_pb2_grpc.py; do
        grep -q '^class .*Stub' "$module" || rm "$module" "${module}i"
    done
    describe "$1"
}

# The whole contract with its comments, for tools that cannot or shall not ask the server: grpcurl -protoset FILE. The
# error details are in it, too, so that such tools can show them.
describe() {
    mkdir -p "$1/agentrpc/v1"
    google=$(python -c 'import google.rpc.error_details_pb2 as e; print(e.__file__)')
    python -m grpc_tools.protoc -Iproto -I"${google%/google/rpc/*}" \
        --include_imports --include_source_info --descriptor_set_out="$1/$protoset" \
        proto/agentrpc/v1/*.proto google/rpc/error_details.proto
}

if [ "${1:-}" = --protoset ]; then
    describe generated
    echo "generated/$protoset"
    exit
fi

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
