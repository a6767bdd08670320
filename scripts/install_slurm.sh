#!/usr/bin/env bash
# Installs the real Slurm that tests start, and ip, which gives each cluster a network of its own (Debian, Ubuntu; as
# root or with sudo); does nothing when they are there.
# --optional: a failure is only told (the tests that need it are then skipped), except where CI=true.
set -euo pipefail

subject=Slurm
skipped=Slurm
packages=(munge slurm-client slurm-wlm-basic-plugins slurmctld slurmd iproute2)
programs=(ip munged sbatch scontrol slurmctld slurmd squeue srun)
by_hand="${programs[*]} (Slurm, munge and iproute2)"
# shellcheck source=scripts/lib/install.sh
source "${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}lib/install.sh"

is_complete() {
    local name
    for name in "${programs[@]}"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null || return 1
    done
}

for option in "$@"; do take_option "$option"; done
! is_complete || exit 0
install_packages
is_complete || die "the packages of this distribution lack one of ${programs[*]}"
say "installed; no daemon was started"
