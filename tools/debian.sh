#!/usr/bin/env bash
# Runs a command in a newer Debian, which has compilers and Pythons that this system lacks:
#
#   tools/debian.sh COMMAND...      for example: tools/debian.sh clang++ --version
#
# The first run makes it with debootstrap, in build/debian (four minutes, 2.6 GB). The command runs there as in a chroot,
# in this checkout, which is /xhat. Its mounts lie in a namespace of its own, so none is left behind. The environment is
# handed on, and pip's index.
#
# Needs Linux, root, debootstrap, and a network. SUITE, MIRROR and DEBIAN (the folder) name others. Status 69: not possible here.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/unavailable.sh
suite=${SUITE:-forky}
root=$(realpath -m "${DEBIAN:-build/debian}")
packages=(ca-certificates make clang clang-tidy libomp-dev g++-12 g++-13 g++-14 g++-15 g++-16)
for version in 3.13 3.14 3.15; do
    packages+=("python$version" "python$version-dev" "python$version-venv")
done

[ $# -gt 0 ] || set -- bash
[ "$(uname -s)" = Linux ] || unavailable "a Debian runs on Linux only."
[ "$(id -u)" = 0 ] || unavailable "this needs root, to change the root folder: run it with sudo, or in a container."
unshare --mount true 2> /dev/null || unavailable "this needs a mount namespace, which the container that it runs in forbids."

if [ ! -e "$root/etc/debian_version" ]; then
    command -v debootstrap > /dev/null || unavailable "debootstrap is missing: apt-get install debootstrap."
    scripts=${DEBOOTSTRAP_DIR:-/usr/share/debootstrap}/scripts
    mirror=${MIRROR:-$(sed -n 's/^DEF_MIRROR="\(.*\)"/\1/p' "$(command -v debootstrap)")}
    rm -rf "$root.part"
    mkdir -p "$(dirname "$root")"
    echo "Making a Debian $suite in $root, which takes a few minutes"
    # The script for sid is the one for every new suite, those too that this debootstrap is too old for.
    debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$root.part" "$mirror" \
        "$scripts/sid" > "$root.log" || unavailable "debootstrap failed; $root.log says where."
    mkdir -p "$root.part/xhat"
    rm -f "$root.part"/var/cache/apt/archives/*.deb
    mv "$root.part" "$root"
fi

# How this system reaches the network: names, certificates, and where pip finds packages.
certificates=/etc/ssl/certs/ca-certificates.crt
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
[ ! -e "${SSL_CERT_FILE:-$certificates}" ] || cp -L "${SSL_CERT_FILE:-$certificates}" "$root$certificates"
index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2> /dev/null || true)}
[ -z "$index" ] || export PIP_INDEX_URL="$index"
export PIP_CERT=$certificates SSL_CERT_FILE=$certificates PIP_ROOT_USER_ACTION=ignore
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
[[ "${PIP_FIND_LINKS:-}" != /* ]] || unset PIP_FIND_LINKS  # a folder that is not there

# shellcheck disable=SC2016  # the inner shells expand these
exec unshare --mount bash -euc '
    mount --bind "$PWD" "$0/xhat"
    mount -t proc proc "$0/proc"
    mount -t tmpfs tmpfs "$0/dev/shm"
    exec chroot "$0" bash -c "cd /xhat; exec \"\$@\"" bash "$@"' "$root" "$@"
