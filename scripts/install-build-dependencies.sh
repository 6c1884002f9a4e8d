#!/bin/sh
# Installs the Debian packages that are needed to build the node image and to run clusters on this machine.
#
# Made for Debian 12 (bookworm) and 13 (trixie), as root or as a user with sudo. Can be run again at any time.
# On bookworm QEMU and its firmware come from backports: QEMU 7.2 emulates two to five times slower than QEMU 10.
set -eu

# What both releases have.
packages="
    apt-utils ca-certificates curl debian-archive-keyring
    gcc g++ libc6-dev make musl-tools perl pkg-config git
    tar xz-utils zstd
    swtpm swtpm-tools
    cryptsetup-bin
"
# What bookworm has too old.
emulator="qemu-system-x86 qemu-utils ovmf"

# Comes with debian-archive-keyring, which is part of every Debian installation that has apt.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q "$@"
}

# The address of the mirror from which this machine takes that suite.
mirror_of() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Release: $1" | head -n 1
}

add_backports() {
    if [ -n "$(mirror_of "$codename-backports")" ]; then return; fi
    mirror=$(mirror_of "$codename")
    if [ -z "$mirror" ]; then
        say "error: apt knows no source for Debian $codename, so its backports cannot be found either"
        exit 1
    fi
    say "adding $codename-backports from the mirror this machine already uses"
    printf 'deb [signed-by=%s] %s %s-backports main\n' "$keyring" "$mirror" "$codename" |
        as_root tee /etc/apt/sources.list.d/constellation-backports.list > /dev/null
}

# The missing ones of the named packages.
missing() {
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || printf '%s ' "$package"
    done
}

qemu_is_recent() {
    version=$(dpkg-query -W -f '${Version}' qemu-system-x86 2> /dev/null) || return 1
    dpkg --compare-versions "$version" ge 1:10
}

. /etc/os-release
codename=${VERSION_CODENAME:-unknown}
case "$codename" in
    bookworm | trixie) ;;
    *)
        say "error: this script knows Debian bookworm and trixie, not '$codename'."
        say "Install with your own package manager: QEMU 10 or newer for x86-64, OVMF, swtpm, musl-gcc, gcc, make, git,"
        say "tar, xz, zstd, and apt with Debian's archive keyring (the image is made from Debian packages)."
        exit 1
        ;;
esac

# shellcheck disable=SC2086  # lists of words
todo=$(missing $packages $emulator)
if [ -z "$todo" ] && { [ "$codename" != bookworm ] || qemu_is_recent; }; then
    say "all packages are installed"
    exit 0
fi

suite=$codename
if [ "$codename" = bookworm ]; then
    add_backports
    suite=bookworm-backports
fi
# A broken source of somebody else must not stop us: what matters is whether our packages can be installed afterwards.
apt_get update || say "some package sources could not be refreshed, going on with the others"

# shellcheck disable=SC2086  # lists of words
apt_get install -y --no-install-recommends $packages
# shellcheck disable=SC2086  # lists of words
apt_get install -y --no-install-recommends -t "$suite" $emulator

if ! qemu_is_recent; then
    say "error: QEMU 10 or newer is needed, apt offers $(dpkg-query -W -f '${Version}' qemu-system-x86)"
    exit 1
fi
