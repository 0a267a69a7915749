#!/usr/bin/env bash
# Builds the clients in examples/ from proto/ alone and runs each against one real server, whose model is a script.
#
#   scripts/interop.sh [python] [go] [typescript] [java]     all of them unless some are named
#
# A language whose tools are not installed is skipped; with INTEROP_REQUIRE_ALL=1 that is a failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH" # the service, and buf
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
unset ${!OPENAI_@} ${!AGENT_SERVICE_@} # nothing depends on who runs it
work=$(mktemp -d)
server='' model=''
trap 'kill $server $model 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

# The tools that an example needs on the path, how it is built, and how it is run; each in the folder of the example.
tools_python='python'
build_python() {
    cmp -s requirements.txt .venv/installed || {
        python -m venv --clear .venv
        .venv/bin/pip install --disable-pip-version-check -r requirements.txt
        cp requirements.txt .venv/installed
    }
    mkdir -p gen
    .venv/bin/python -m grpc_tools.protoc -I ../../proto --python_out=gen --grpc_python_out=gen \
        ../../proto/agentrpc/v1/*.proto
}
run_python() {
    python library.py # with the package, which has the library
    PYTHONPATH=gen .venv/bin/python workers.py
    PYTHONPATH=gen .venv/bin/python main.py
}

tools_go='go buf'
build_go() {
    go generate
    go build -o gen/ .
}
run_go() { gen/interop; }

tools_typescript='node npm buf'
build_typescript() {
    cmp -s package-lock.json node_modules/.installed || {
        npm ci --no-audit --no-fund
        cp package-lock.json node_modules/.installed
    }
    npm run build
}
run_typescript() { npm start --silent; }

tools_java='java mvn'
build_java() { mvn --batch-mode --quiet compile; }
run_java() { mvn --batch-mode --quiet exec:java; }

# start NAME COMMAND...: runs a server in the background; the first line that it prints comes into $line, its id into $!.
start() {
    mkfifo "$work/$1.line"
    "${@:2}" >"$work/$1.line" 2>"$work/$1.log" &
    read -r -t 60 line <"$work/$1.line" || {
        kill $! 2>/dev/null || true
        echo "error: the $1 did not start:" >&2
        cat "$work/$1.log" >&2
        exit 1
    }
}

# in_example LANGUAGE FUNCTION: runs it in a shell of its own, where a command that fails ends it.
in_example() {
    (cd "examples/$1" && exec bash -euc "$(declare -f "$2"); $2") </dev/null
}

# try LANGUAGE: one line that says how it went, and what was printed if it went wrong.
try() {
    local language=$1 what began log=$work/$1.log
    printf '%-10s' "$language"
    for what in build run; do
        began=$SECONDS
        printf ' %s ' "$what"
        in_example "$language" "${what}_$language" >"$log" 2>&1 || {
            printf 'FAILED\n'
            sed 's/^/    /' "$log"
            return 1
        }
        printf '%2d s ' $((SECONDS - began))
    done
    grep -qx "interop ok: $language" "$log" || {
        printf 'FAILED: it did not say that it is ok\n'
        sed 's/^/    /' "$log"
        return 1
    }
    printf ' ok\n'
}

# missing LANGUAGE: the first of its tools that is not installed.
missing() {
    local tool tools=tools_$1
    for tool in ${!tools}; do
        command -v "$tool" >/dev/null || { echo "$tool" && return; }
    done
}

[ $# -gt 0 ] || set -- python go typescript java
for language; do
    declare -F "build_$language" >/dev/null || { echo "error: there is no example '$language'" >&2 && exit 2; }
done

export PYTHONPATH="$PWD:$PWD/generated${PYTHONPATH:+:$PYTHONPATH}"
start model python examples/scripted_model.py
model=$!
export OPENAI_BASE_URL=$line
start server python -m agent_service serve --port 0 --store "$work/runs.sqlite3"
server=$!
unset OPENAI_BASE_URL PYTHONPATH
export AGENT_SERVICE_TARGET=${line##* }
echo "server on $AGENT_SERVICE_TARGET"

passed=0 failed=0 skipped=0
for language; do
    tool=$(missing "$language")
    if [ -z "$tool" ]; then
        if try "$language"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    elif [ "${INTEROP_REQUIRE_ALL:-}" = 1 ]; then
        printf '%-10s FAILED: %s is not installed\n' "$language" "$tool"
        failed=$((failed + 1))
    else
        printf '%-10s skipped: %s is not installed\n' "$language" "$tool"
        skipped=$((skipped + 1))
    fi
done

# Told to stop, the model fails if the service sent it something that no model accepts.
kill "$server" "$model"
wait "$server" || { echo "error: the server failed:" >&2 && cat "$work/server.log" >&2 && failed=$((failed + 1)); }
wait "$model" || { echo "error: the model refused something:" >&2 && cat "$work/model.log" >&2 && failed=$((failed + 1)); }
server='' model=''
echo "interop: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
