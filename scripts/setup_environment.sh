#!/usr/bin/env bash
# Makes .venv/ with everything that the demo, the tests and the checks need. Does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/installed-$(cat pyproject.toml constraints.txt setup.py swarm_hpc/kernels/native.c "$0" | cksum | cut -d' ' -f1)
[ -e "$stamp" ] && exit 0

uv_version=0.13.9

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11-3.13 found; install one or set PYTHON=/path/to/python" >&2
    return 1
}

make_venv() {
    # Debian's python3 cannot make environments until its venv package is there.
    "$1" -m venv .venv 2>&1 || "$1" -m virtualenv --quiet .venv 2>&1
}

install_venv_package() {
    local package sudo=""
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && sudo="sudo -n"; } || return 1
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    echo "setup: installing $package" >&2
    $sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq "$package" >&2
}

python=$(find_python)
if [ ! -x .venv/bin/python ]; then
    if ! why=$(make_venv "$python"); then
        rm -rf .venv
        if ! { install_venv_package "$python" && make_venv "$python"; }; then
            echo "$why" >&2
            echo "setup: $python cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2
            exit 1
        fi
    fi
fi

if ! .venv/bin/uv --version 2>/dev/null | grep -q "uv $uv_version"; then
    echo "setup: installing uv $uv_version" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
fi

echo "setup: installing packages into .venv (about 5 GB; one to several minutes the first time)" >&2
# --system-certs: institutions often have a proxy with a CA of their own.
.venv/bin/uv pip install --quiet --system-certs --python .venv/bin/python --constraint constraints.txt \
    --editable '.[pytorch,keras,mpi,demo,dev]'
rm -f .venv/installed-*
touch "$stamp"
