# What the install scripts share: how they speak and end, limits and locks, and packages of Debian and Ubuntu.
# The script that sources this file sets before: `subject` (each line that it says begins with that), `skipped` (what
# is not tested without it), and for packages `packages` (their names) and `by_hand` (what to install where there is no
# apt-get). It may define clean_up, which is called at its end, however that comes.
# shellcheck shell=bash

# shellcheck disable=SC2034 # used by the scripts
cache=${SWARM_HPC_CACHE:-${XDG_CACHE_HOME:-${HOME:-~}/.cache}/swarm-hpc}
policy=/usr/sbin/policy-rc.d # what it says, invoke-rc.d obeys
mark="while swarm-hpc installs packages"
lists_wait_s=300 # for another apt-get to be done with the lists of packages
optional=""
sudo=()
pid=""      # of what `run` runs
log=""      # of apt-get
kept=$policy.swarm-hpc # the host's own policy, while ours is in its place
in_place=""            # what ours is in the place of: `kept` or `none`

say() { echo "$subject: $*" >&2; }

die() {
    say "$*"
    exit 1
}

show_end() { # log
    tail -n 15 "$1" | sed 's/^/    /' >&2
}

take_option() { # --optional
    case $1 in
    --optional) [ "${CI:-}" = true ] || optional=yes ;;
    *)
        say "unknown option $1"
        optional=""
        exit 2
        ;;
    esac
}

clean_up() { :; }

finish() {
    local status=$?
    trap '' INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null && wait "$pid" || true
    fi
    restore_policy
    [ -z "$log" ] || rm -f "$log"
    clean_up || true # what fails here must not hide how it ended
    if [ -n "$optional" ] && ((status > 0 && status < 128)); then
        say "going on without; tests that need $skipped are skipped"
        exit 0
    fi
    exit "$status"
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

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

# Until this process ends. Nobody else with this lock writes into the cache meanwhile.
take_lock() { # file, what another one may be doing
    case $cache in /*) ;; *) die "$cache: SWARM_HPC_CACHE must be an absolute path" ;; esac
    mkdir -p "${1%/*}" && exec 9>"$1" || die "set SWARM_HPC_CACHE to a folder that can be written to"
    flock --nonblock 9 || {
        say "waiting for another $2 into $cache"
        flock --timeout 3600 9 || die "$1: cannot be locked; set SWARM_HPC_CACHE to a folder on a local disk"
    }
}

become_root() {
    command -v apt-get >/dev/null || die "there is no apt-get: install $by_hand by hand"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || die "only root may install packages: apt-get install ${packages[*]}"
        sudo=(sudo -n)
    fi
}

# No daemon starts by itself: tests start their own, and a host's own cluster is none of our business.
forbid_daemons() {
    # One at a time: the second would take the first one's policy for the host's own.
    exec 8<"${policy%/*}"
    flock --timeout 1200 8 || die "$policy: another installation does not end"
    if grep -qsF "$mark" "$policy"; then # one that was killed left it; it would forbid all daemons for ever
        "${sudo[@]}" rm -f "$policy"
    fi
    if [ -e "$policy" ]; then
        in_place=kept
        "${sudo[@]}" mv -f "$policy" "$kept"
    elif [ -e "$kept" ]; then
        in_place=kept
    else
        in_place=none
    fi
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod 755 "$policy"
}

restore_policy() {
    case $in_place in
    kept) [ ! -e "$kept" ] || "${sudo[@]}" mv -f "$kept" "$policy" ;;
    none) "${sudo[@]}" rm -f "$policy" ;;
    *) return 0 ;;
    esac
    in_place=""
    exec 8<&-
}

apt() { # command, words...
    local until_s=$((SECONDS + lists_wait_s))
    [ -n "$log" ] || log=$(mktemp)
    until "${sudo[@]}" env LC_ALL=C DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 600 \
        apt-get -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null; do
        # That option is not for the lists of packages, which a host that has just started updates by itself.
        if ((SECONDS >= until_s)) || [[ $(<"$log") != *"Could not get lock "*/lists/lock* ]]; then
            show_end "$log"
            die "apt-get $1 failed; install ${packages[*]} by hand"
        fi
        sleep 1
    done
}

# `packages`, as root, and no daemon of theirs.
install_packages() {
    become_root
    say "installing ${packages[*]} ..."
    apt update
    forbid_daemons
    apt install --yes --no-install-recommends "${packages[@]}"
    restore_policy
}
