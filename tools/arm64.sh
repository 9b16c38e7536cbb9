#!/usr/bin/env bash
# xhat on ARM64, on an x86-64 Debian: compiled by a cross compiler, run by QEMU's user mode.
#
#   tools/arm64.sh survey    every kernel (tests/survey.py): the digests must be those of x86-64
#   tools/arm64.sh tests     that, and the tests of the core, with a limit of time for each and for all together
#
# Needs a Python that imports xhat and has pip (PYTHON, by default .venv/bin/python), and what debian_packages.sh needs.
# Leaves build/arm64 behind, which makes the next run faster, and changes nothing else. Status 69: not possible here.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_packages.sh
. tools/core_tests.sh
what=${1:-survey}
[[ "$what" =~ ^(survey|tests)$ ]] || { echo "$0: there is no mode '$what', expected survey or tests." >&2; exit 2; }
native=${PYTHON:-.venv/bin/python}
place=$PWD/build/arm64
host=$place/host root=$place/root site=$place/root/usr/local/lib/xhat python=$place/root/usr/bin/xhat-python
each=300 all=2400  # seconds
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" XHAT_PATIENCE=2.5 PYTHONPYCACHEPREFIX="$place/pycache" HYPOTHESIS_STORAGE_DIRECTORY="$place/hypothesis"

need_debian
need_xhat "$native"
mkdir -p "$place/bin"

# once STEP: runs it, unless it has succeeded before.
once() {
    [ -e "$place/made-$1" ] || "$1"
    touch "$place/made-$1"
}

# The compiler and the interpreter by names that other programs can run: each finds its libraries where it was unpacked.
# shellcheck disable=SC2016  # the two expand their arguments
compiler() {
    unpack_qemu "$host" aarch64 g++-aarch64-linux-gnu
    local tool options
    for tool in g++ ar ranlib nm strip; do
        options=$([ $tool != g++ ] || echo "--sysroot='$host'")
        printf '#!/bin/sh\nPATH="%s/usr/bin:$PATH" LD_LIBRARY_PATH="%s/usr/lib/x86_64-linux-gnu" exec aarch64-linux-gnu-%s %s "$@"\n' \
            "$host" "$host" $tool "$options" > "$place/bin/aarch64-linux-gnu-$tool"
        chmod +x "$place/bin/aarch64-linux-gnu-$tool"
    done
}
# shellcheck disable=SC2016
interpreter() {
    unpack "$root" arm64 python3 libpython3-dev libgomp1 libstdc++6
    printf '#!/bin/sh\nexec "%s/usr/bin/qemu-aarch64-static" -L "%s" -0 "$0" "%s/usr/bin/python3" "$@"\n' \
        "$host" "$root" "$root" > "$python"
    chmod +x "$python"
}

# Wheels of what the tests import; then the tools of the build.
wheels() {
    local version
    version=$(basename "$(readlink "$root/usr/bin/python3")")
    local platform=()
    for glibc in 17 24 26 27 28 31 34; do platform+=(--platform "manylinux_2_${glibc}_aarch64"); done
    "$native" -m pip install --quiet --target "$site" --upgrade --constraint constraints.txt --only-binary=:all: \
        --python-version "${version#python}" --implementation cp "${platform[@]}" --platform manylinux2014_aarch64 \
        numpy ml_dtypes hypothesis pytest pytest-timeout pytest-xdist threadpoolctl \
        || unavailable "pip can't download NumPy and pytest for ARM64."
    # In the interpreter's own folders, so that child processes find it whatever their environment.
    echo "$site" > "$root/usr/lib/python3/dist-packages/xhat.pth"
    "$native" -m venv --without-pip "$place/tools"
    "$native" -m pip --python "$place/tools/bin/python" install --quiet --constraint constraints-build.txt cmake ninja nanobind \
        || unavailable "pip can't download CMake, Ninja and nanobind."
}

compile() {
    PATH="$place/tools/bin:$PATH" cmake -S . -B "$place/cmake" -G Ninja -DSKBUILD=2 --log-level=WARNING \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_CXX_COMPILER="$place/bin/aarch64-linux-gnu-g++" -DCMAKE_CXX_FLAGS="-Werror -idirafter '$root/usr/include'" \
        -DPython_EXECUTABLE="$python" -Dnanobind_DIR="$("$place/tools/bin/python" -m nanobind --cmake_dir)"
    PATH="$place/tools/bin:$PATH" cmake --build "$place/cmake"
    rm -rf "$site"/xhat "$site"/xhat-*.dist-info
    cp -r src/xhat "$site/xhat"
    rm -f "$site"/xhat/_kernels*.so
    cp "$place"/cmake/_kernels*.so "$site/xhat/"
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    mkdir "$site/xhat-$version.dist-info"
    printf 'Metadata-Version: 2.1\nName: xhat\nVersion: %s\n' "$version" > "$site/xhat-$version.dist-info/METADATA"
    printf '[console_scripts]\nxhat = xhat.cli:main\n' > "$site/xhat-$version.dist-info/entry_points.txt"
}

trap wait EXIT  # nothing goes on when this has ended
once interpreter  # first: where there is no network, this is the one that reports it
once compiler & pid=$!
once wheels
wait "$pid" || exit $?
compile
"$native" tests/survey.py > "$place/x86-64.json" &
"$python" tests/survey.py > "$place/arm64.json"
wait $!
"$native" tools/same_digests.py "$place/x86-64.json" "$place/arm64.json"
[ "$what" = tests ] || exit 0

mapfile -t files < <(core_tests memory)  # the memory would be the emulator's
exec timeout --kill-after=10 "$all" "$python" -m pytest -q -p no:cacheprovider --timeout="$each" \
    --numprocesses "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "${files[@]}" \
    --deselect=tests/test_processes.py::test_too_little_memory_is_an_error_that_can_be_caught
