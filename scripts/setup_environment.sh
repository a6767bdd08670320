#!/usr/bin/env bash
# Makes .venv/ with everything that the demo, the tests and the checks need. Does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

inputs=(pyproject.toml constraints.txt setup.py swarm_hpc/kernels/native.c scripts/setup_environment.sh)
kernels='swarm_hpc/kernels/_native*.so'

describe() {
    cat "${inputs[@]}"
    if command -v "${CC:-cc}" >/dev/null; then echo "with a compiler"; fi
}

# There when everything was installed. Without any, what is installed may be half written.
stamp=.venv/installed-$(describe | cksum | cut -d' ' -f1)
begun=.venv/begun # while there are no pip and uv in it, which install the rest

# Not where the host has replaced it by another version, which finds no packages in there.
has_python() {
    [ -x .venv/bin/python ] || return 1
    local name
    name=$(readlink -f .venv/bin/python)
    case ${name##*/} in python3.*) [ -d ".venv/lib/${name##*/}" ] ;; esac
}

is_complete() { [ -e "$stamp" ] && has_python; }

if is_complete; then exit 0; fi

uv_version=0.13.9

# One at a time, where the file system has locks.
take_lock() {
    command -v flock >/dev/null || return 0
    exec 9>.venv.lock
    local status=0
    flock --nonblock 9 2>/dev/null || status=$?
    ((status == 1)) || return 0
    echo "setup: waiting for another one, which makes .venv" >&2
    flock --timeout 3600 9 || {
        echo "setup: the other one does not end; end it, and try again" >&2
        return 1
    }
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11-3.13 found; install one or set PYTHON=/path/to/python" >&2
    return 1
}

make_venv() {
    mkdir -p .venv && find .venv/ -mindepth 1 -maxdepth 1 -exec rm -rf {} + # it may be a link to another disk
    touch "$begun"
    # Debian's python3 cannot make environments until its venv package is there.
    "$1" -m venv .venv 2>&1 || "$1" -m virtualenv --quiet .venv 2>&1
}

install_venv_package() {
    local package apt=(env DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 600 apt-get -qq)
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && apt=(sudo -n "${apt[@]}"); } || return 1
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    echo "setup: installing $package" >&2
    "${apt[@]}" update >&2 </dev/null || true
    "${apt[@]}" -o DPkg::Lock::Timeout=300 install -y "$package" >&2 </dev/null
}

take_lock
if is_complete; then exit 0; fi # another one may just have made it

# One that is active cannot make itself anew.
if [ "${VIRTUAL_ENV:-}" -ef .venv ]; then PATH=${PATH//"$VIRTUAL_ENV/bin:"/}; fi
python=$(find_python)
if [ -e "$begun" ] || ! has_python; then
    if ! why=$(make_venv "$python"); then
        if ! { install_venv_package "$python" && make_venv "$python"; }; then
            echo "$why" >&2
            echo "setup: $python cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2
            exit 1
        fi
    fi
fi

if ! .venv/bin/uv --version 2>/dev/null | grep -q "uv $uv_version"; then
    echo "setup: installing uv $uv_version" >&2
    # --no-user: clusters often have pip install for the user, which is refused in an environment.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-user "uv==$uv_version"
fi
rm -f "$begun"

# uv takes a package that was half written when it was interrupted for a whole one.
again=()
compgen -G '.venv/installed-*' >/dev/null || again=(--reinstall)
# Nor do kernels of another version stay where these cannot be compiled, which is no error.
# shellcheck disable=SC2086 # a pattern
rm -f .venv/installed-* $kernels
echo "setup: installing packages into .venv (about 5 GB; one to several minutes the first time)" >&2
# --system-certs: institutions often have a proxy with a CA of their own.
.venv/bin/uv pip install --quiet --system-certs --python .venv/bin/python --constraint constraints.txt \
    "${again[@]}" --editable '.[pytorch,keras,mpi,demo,dev]'
compgen -G "$kernels" >/dev/null ||
    echo "setup: swarm_hpc/kernels/native.c was not compiled, so merges are slow: install a C compiler, try again" >&2
touch "$stamp"
