# Debian's packages without installing them: `. tools/debian_packages.sh`, then
#   unpack FOLDER ARCHITECTURE PACKAGE...           unpacks them, and what they depend on, into FOLDER
#   unpack_qemu FOLDER PROCESSOR [PACKAGE]...       the emulator of this processor, and more packages for this machine
# Packages of this machine's architecture are those that it lacks; of another one, all. An apt of its own, in FOLDER.apt,
# downloads them, so that the lists, packages and architectures of the machine stay as they are.
#   need_xhat PYTHON                          ends where this Python does not import xhat
# Where that is not possible it ends with status 69 (EX_UNAVAILABLE) and one sentence.
# shellcheck shell=bash

. tools/unavailable.sh

# need_xhat PYTHON
need_xhat() {
    "$1" -c 'import xhat' 2> /dev/null || unavailable "there is no xhat in $1. Run make test first, or name a Python that imports it: PYTHON=..."
}

need_debian() {
    local place
    # shellcheck disable=SC1091
    place=$(. /etc/os-release 2> /dev/null && echo "${ID:-}") || true
    [ "$place" = debian ] && [ "$(dpkg --print-architecture)" = amd64 ] \
        || unavailable "this needs the packages of Debian on x86-64, and this machine is ${place:-no Linux} on $(uname -m)."
}

# apt-get with its state in $apt, for packages of $architecture.
own_apt() {
    apt-get --quiet=2 -o Dir::State="$apt/state" -o Dir::Cache="$apt/cache" -o Dir::State::status="$installed" \
        -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o APT::Sandbox::User= \
        -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" -o Acquire::Languages=none \
        -o Acquire::Retries=3 "$@"
}

unpack() {
    need_debian
    local folder apt="$1.apt" architecture=$2 installed="$1.apt/none" mirror release wanted deb
    folder=$(realpath -m "$1")
    apt=$folder.apt
    shift 2
    mkdir -p "$folder" "$apt"/state/lists/partial "$apt"/cache/archives/partial "$apt"/debs
    touch "$apt/none"
    installed=$apt/none
    [ "$architecture" != "$(dpkg --print-architecture)" ] || installed=/var/lib/dpkg/status
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(sed -nE 's/^(URIs: |deb (\[[^]]*\] )?)([^ ]+debian)\/?( .*)?$/\3/p' /etc/apt/sources.list \
        /etc/apt/sources.list.d/* 2> /dev/null | head -n 1) || true
    [ -n "$mirror" ] || unavailable "/etc/apt/sources.list names no mirror of Debian."
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" \
        > "$apt/sources.list"
    own_apt update || unavailable "the lists of Debian's packages can't be downloaded from $mirror."
    wanted=$(own_apt install --simulate --no-install-recommends "$@" | awk '/^Inst/ {print $2}') \
        || unavailable "Debian $release has not all of: $*."
    # shellcheck disable=SC2086
    (cd "$apt/debs" && { [ -z "$wanted" ] || own_apt download $wanted; }) \
        || unavailable "Debian's packages can't be downloaded from $mirror."
    for deb in "$apt"/debs/*.deb; do
        [ ! -e "$deb" ] || dpkg --extract "$deb" "$folder"
    done
    rm -rf "$apt"
}

unpack_qemu() {
    local folder=$1 processor=$2
    shift 2
    unpack "$folder" amd64 qemu-user-static "$@"
    # The package has thirty more emulators.
    find "$folder/usr/bin" -name 'qemu-*' ! -name "qemu-$processor" ! -name "qemu-$processor-static" -delete
}
