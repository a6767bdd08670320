#!/usr/bin/env bash
# Installs the real Slurm that tests start, and ip, which gives each cluster a network of its own (Debian, Ubuntu; as
# root or with sudo); does nothing when they are there.
# --optional: a failure is only told (the tests that need it are then skipped), except where CI=true.
set -euo pipefail

packages=(munge slurm-client slurm-wlm-basic-plugins slurmctld slurmd iproute2)
programs=(ip munged sbatch scontrol slurmctld slurmd squeue srun)
policy=/usr/sbin/policy-rc.d # what it says, invoke-rc.d obeys

optional=$([ "${1:-}" = --optional ] && [ "${CI:-}" != true ] && echo yes || true)
sudo=()
log=""
kept=""     # the host's own policy, while ours is in its place
in_place="" # ours is

say() { echo "Slurm: $*" >&2; }

die() {
    say "$*"
    exit 1
}

finish() {
    local status=$?
    trap '' INT TERM
    restore_policy
    rm -f "$log"
    if [ -n "$optional" ] && ((status > 0 && status < 128)); then
        say "going on without; tests that need Slurm are skipped"
        exit 0
    fi
    exit "$status"
}

is_complete() {
    local name
    for name in "${programs[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null || return 1
    done
}

become_root() {
    command -v apt-get >/dev/null || die "there is no apt-get: install ${programs[*]} (Slurm, munge and iproute2) by hand"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || die "only root may install packages: apt-get install ${packages[*]}"
        sudo=(sudo -n)
    fi
}

# No daemon starts by itself: tests start their own, and a host's own cluster is none of our business.
forbid_daemons() {
    if [ -e "$policy" ]; then
        kept=$policy.swarm-hpc
        "${sudo[@]}" mv "$policy" "$kept"
    fi
    in_place=yes
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
}

restore_policy() {
    [ -n "$in_place" ] || return 0
    "${sudo[@]}" rm -f "$policy"
    [ -z "$kept" ] || "${sudo[@]}" mv "$kept" "$policy"
}

apt() { # command, words...
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 600 \
        apt-get -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null || {
        tail -n 15 "$log" | sed 's/^/    /' >&2
        die "apt-get $1 failed; install ${packages[*]} by hand"
    }
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
! is_complete || exit 0
become_root
log=$(mktemp)
say "installing ${packages[*]} ..."
apt update
forbid_daemons
apt install --yes --no-install-recommends "${packages[@]}"
is_complete || die "the packages of this distribution lack one of ${programs[*]}"
say "installed; no daemon was started"
