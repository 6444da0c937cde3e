#!/bin/sh
# Everything on this machine, without containers and without anything to install: the embedded broker, a SQLite file, a worker, an agent host,
# beat, Flower and the management API. Ctrl-C ends all of it in order.
#
#   deploy/run_local.sh [folder]      what is kept lives in the folder; .orchestrator by default
#
# API_PORT and FLOWER_PORT choose other ports; `orchestrator` is taken from the checkout's .venv if there is one, else from PATH.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$here/.venv/bin/orchestrator" ] && PATH=$here/.venv/bin:$PATH
export ORCHESTRATOR_HOME="${1:-.orchestrator}"
export ORCHESTRATOR_API_PORT="${API_PORT:-8000}"
flower_port="${FLOWER_PORT:-5555}"
wait_max_s=90
started=''

# What starts last leaves first: agents drain while the broker is still there.
leave() {
    trap - EXIT INT TERM
    for pid in $started; do
        kill -TERM "$pid" 2>/dev/null || continue
        wait "$pid" 2>/dev/null || true
    done
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

begin() { # begin NAME COMMAND...: its output is in the home folder
    name=$1
    shift
    "$@" >"$ORCHESTRATOR_HOME/$name.log" 2>&1 &
    started="$! $started"
    eval "${name}_pid=$!"
}

alive() { # alive NAME
    eval "pid=\$${1}_pid"
    kill -0 "$pid" 2>/dev/null && return
    echo "$1 has ended; the last lines of $ORCHESTRATOR_HOME/$1.log:" >&2
    tail -n 5 "$ORCHESTRATOR_HOME/$1.log" >&2
    exit 1
}

until_true() { # until_true NAME COMMAND...: ask until it is true, as long as the process lives
    name=$1
    shift
    waited=0
    until "$@" >/dev/null 2>&1; do
        alive "$name"
        waited=$((waited + 1))
        [ "$waited" -le "$wait_max_s" ] || { echo "$name is not ready after $wait_max_s s; see $ORCHESTRATOR_HOME/$name.log" >&2; exit 1; }
        sleep 1
    done
}

answers() { # answers URL
    python3 -c "import urllib.request; urllib.request.urlopen('$1', timeout=2)"
}

mkdir -p "$ORCHESTRATOR_HOME"
begin stack orchestrator dev --no-api --home "$ORCHESTRATOR_HOME" --queues fleet --flower-port "$flower_port"
until_true stack orchestrator doctor
begin api orchestrator api
until_true api answers "http://127.0.0.1:$ORCHESTRATOR_API_PORT/health"

echo "api: http://127.0.0.1:$ORCHESTRATOR_API_PORT, described at /docs; flower: http://127.0.0.1:$flower_port; logs: $ORCHESTRATOR_HOME/*.log"
while :; do
    for name in stack api; do alive "$name"; done
    sleep 2 &
    wait $!
done
