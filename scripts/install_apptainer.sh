#!/usr/bin/env bash
# Gives this host an Apptainer that needs no setuid program, and the programs that builds and runs of ordinary users
# need (Debian; packages as root or with sudo); does nothing when they are there. It is the distribution's own where
# that has one. Debian 12 has none: a later Debian's is put into the cache folder, outside the checkout, from the mirror
# that apt already uses, with that Debian's libc for itself alone. The host's libc and apt's sources stay as they are.
# --optional: a failure is only told (the tests that need it are then skipped), except where CI=true.
set -euo pipefail

suite=sid # where Debian has it
programs=(mksquashfs:squashfs-tools squashfuse_ll:squashfuse fuse2fs:fuse2fs fuse-overlayfs:fuse-overlayfs
    fusermount3:fuse3 newuidmap:uidmap fakeroot:fakeroot mmdebstrap:mmdebstrap debootstrap:debootstrap)
relocation=(patchelf:patchelf libseccomp.so.2:libseccomp2 libsqlite3.so.0:libsqlite3-0) # what another suite's needs

subject=Apptainer
skipped=Apptainer
packages=()
by_hand="Apptainer and ${programs[*]%:*}"
# shellcheck source=scripts/lib/install.sh
source "${BASH_SOURCE[0]%"${BASH_SOURCE[0]##*/}"}lib/install.sh"
prefix=$cache/apptainer
debs=$cache/apptainer-debs # kept: the suite may hold other versions next month, or the host have no network
scratch=""                 # set while the lock is held

clean_up() {
    [ -z "$scratch" ] || rm -rf "$scratch"
}

runs() { # apptainer
    timeout 60 "$1" --version >/dev/null 2>&1
}

is_installed() {
    runs apptainer || runs "$prefix/bin/apptainer"
}

is_there() { # program or library
    local PATH=$PATH:/usr/sbin:/sbin
    case $1 in
    *.so.*) [[ $(ldconfig -p) == *"$1 "* ]] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# The packages of what is not there, in `packages`.
list_missing() { # file:package...
    local pair
    packages=()
    for pair in "$@"; do
        is_there "${pair%:*}" || packages+=("${pair#*:}")
    done
}

get_packages() { # file:package...
    list_missing "$@"
    ((${#packages[@]})) || return 0
    install_packages
    list_missing "$@"
    ((${#packages[@]} == 0)) || die "${packages[*]} of this distribution lack one of ${*%:*}"
}

# udev opens it to everybody; where there is no udev, an ordinary user could not mount an image.
open_fuse() {
    local mode
    mode=$(stat -c %a /dev/fuse 2>/dev/null) || return 0
    case $mode in *[67]) return 0 ;; esac
    if [ "$(id -u)" = 0 ] && chmod 0666 /dev/fuse; then
        say "/dev/fuse had mode $mode; it has 0666 now, which is udev's default"
    else
        say "/dev/fuse has mode $mode: ordinary users cannot mount images until root runs chmod 0666 /dev/fuse"
    fi
}

# Both at once: an Apptainer is kept with the libc that it came with.
are_kept() {
    compgen -G "$debs/apptainer_*.deb" >/dev/null && compgen -G "$debs/libc6_*.deb" >/dev/null
}

indexes() {
    # shellcheck disable=SC2016 # apt's variables
    timeout 60 apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages'
}

# Whether this host's own suites have it. Without indexes apt knows of nothing.
has_own() {
    local found
    if [ -z "$(indexes)" ]; then
        if [ "$(id -u)" = 0 ]; then apt update; else die "apt has no package lists: root must run apt-get update"; fi
    fi
    found=$(LC_ALL=C timeout 60 apt-cache policy apptainer)
    [[ $found == *Candidate:* && $found != *"Candidate: (none)"* ]]
}

# apt with sources and lists of its own, below $scratch; with the host's settings otherwise.
run_apt() { # words...
    run 600 "$scratch/apt.log" env -C "$scratch/debs" apt-get -o "Dir::Etc::sourcelist=$scratch/apt/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$scratch/apt/lists" -o "Dir::Cache=$scratch/apt/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none "$@" || {
        show_end "$scratch/apt.log"
        die "Debian's $suite could not be had from $mirror; on a host that can, put apptainer_*.deb and libc6_*.deb" \
            "of $suite into a folder, and copy that to $debs"
    }
}

fetch() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg options=""
    # To the last line: an apt-get that may not say all of it fails.
    mirror=$(indexes | awk '$1 == "Debian" && $2 == "main" && $3 !~ /-/ && !found { print $4; found = 1 }')
    [ -n "$mirror" ] || die "this distribution has no package of it, and apt no mirror of Debian: install $by_hand by hand"
    [ ! -e "$keyring" ] || options="[signed-by=$keyring] "
    say "fetching apptainer and libc6 of Debian's $suite (20 MB) ..."
    mkdir -p "$scratch/debs" "$scratch/apt/lists/partial" "$scratch/apt/cache/archives/partial"
    echo "deb $options$mirror $suite main" >"$scratch/apt/sources.list"
    run_apt update
    run_apt download apptainer libc6
    sync "$scratch/debs"/*.deb
    rm -rf "$debs"
    mv "$scratch/debs" "$debs"
}

newest() { # package
    compgen -G "$debs/$1_*.deb" | sort --version-sort | tail -n 1
}

unpack() { # package
    run 120 "$scratch/$1.log" dpkg-deb -x "$(newest "$1")" "$scratch/$1" || {
        show_end "$scratch/$1.log"
        die "$(newest "$1") cannot be unpacked; remove $debs and try again"
    }
}

# The packages' files, in a tree that may lie anywhere but must then stay there: $prefix.
build_tree() {
    local tree=$scratch/tree from lib loader binary
    local libc=$tree/libexec/glibc
    unpack apptainer
    unpack libc6
    mkdir -p "$tree/bin" "$tree/etc" "$tree/var/lib/apptainer/mnt/session" "$libc"
    from=$(echo "$scratch"/apptainer/usr/lib/*/apptainer)
    cp -a "$scratch/apptainer/usr/bin/apptainer" "$tree/bin/"
    cp -a "$scratch/apptainer/etc/apptainer" "$tree/etc/"
    cp -a "$from" "$tree/libexec/apptainer"
    # The starter takes the parent of libexec for the prefix, and the program was compiled for lib/TRIPLET: let both find all.
    lib=$tree/lib/$(basename "${from%/apptainer}")
    mkdir -p "$lib"
    ln -s ../../libexec/apptainer "$lib/apptainer"

    from=$(dirname "$(find "$scratch/libc6" -name libc.so.6)")
    for lib in "$from"/{libc.so.6,libm.so.6,libpthread.so.0,libdl.so.2,librt.so.1,libresolv.so.2,libnss_*.so.2}; do
        [ ! -e "$lib" ] || cp -L "$lib" "$libc/"
    done
    from=$(find "$scratch/libc6" -name 'ld-linux*.so.*' | head -n 1)
    loader=${from##*/}
    cp -L "$from" "$libc/$loader"
    for binary in bin/apptainer libexec/apptainer/bin/starter; do
        # Not a RUNPATH: it must hold for what the host's libraries need, too.
        run 60 "$scratch/patchelf.log" patchelf --set-interpreter "$prefix/libexec/glibc/$loader" \
            --force-rpath --set-rpath "$prefix/libexec/glibc" "$tree/$binary" || refuse "$binary" "$scratch/patchelf.log"
        run 60 "$scratch/loader.log" "$libc/$loader" --library-path "$libc" --list "$tree/$binary" ||
            refuse "$binary" "$scratch/loader.log"
    done
    chmod -R a+rX "$tree"
}

refuse() { # file, log
    show_end "$2"
    die "$1 of $(newest apptainer) does not work on this host; remove $debs to fetch another version"
}

install() {
    scratch=$cache/apptainer.new
    rm -rf "$scratch" # of one that was killed
    mkdir -p "$scratch"
    if ! are_kept; then
        if has_own; then
            packages=(apptainer)
            install_packages
            runs apptainer || die "the package apptainer of this distribution does not run"
            return
        fi
        fetch
    fi
    build_tree
    sync -f "$scratch/tree"
    rm -rf "$prefix"
    mv "$scratch/tree" "$prefix"
    runs "$prefix/bin/apptainer" || {
        rm -rf "$prefix"
        die "$(newest apptainer) does not run on this host; remove $debs to fetch another version"
    }
    say "$prefix/bin/apptainer"
}

for option in "$@"; do take_option "$option"; done
needed=("${programs[@]}")
is_installed || needed+=("${relocation[@]}")
get_packages "${needed[@]}"
open_fuse
! is_installed || exit 0
command -v apt-get >/dev/null || die "there is no apt-get: install $by_hand by hand"
# A path goes into the program's headers, where these mean something.
case $cache in *[[:space:]:\$]*) die "$cache: SWARM_HPC_CACHE must have no space, colon or dollar sign" ;; esac
take_lock "$cache/apptainer.lock" installation
! is_installed || exit 0 # another one may just have done it
install
