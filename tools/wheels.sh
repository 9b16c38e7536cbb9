#!/usr/bin/env bash
# What a release uploads, in dist/: the sdist, and the wheels for Linux on x86-64 and ARM64, with OpenMP's runtime.
#
#   tools/wheels.sh build    the sdist, and from it the wheels, repaired and checked
#   tools/wheels.sh          that, and the tests of what is in dist/, each in an environment of its own
#
# One wheel is for Python 3.11, one for every later Python (the stable ABI); so it needs python3.11 and a newer one (PYTHONS
# names others), g++, Debian's g++-aarch64-linux-gnu, and pip with an index. All wheels are built from the unpacked sdist.
# The tests that need PyTorch run where pip finds the build for the CPU (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL).
# Leaves dist/ and build/wheels behind, and changes nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/unavailable.sh
what=${1:-all}
[[ "$what" =~ ^(build|all)$ ]] || { echo "$0: there is no mode '$what', expected build or nothing." >&2; exit 2; }
place=$PWD/build/wheels
tools=$place/tools/bin
export PATH="$PWD/build/arm64/bin:$PATH"  # where tools/arm64.sh unpacks the compiler
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PIP_DISABLE_PIP_VERSION_CHECK=1

# The Pythons of this machine from 3.11 on, one of each version, in order.
pythons() {
    local python candidates=(python3.{11..19} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[1-9].*/bin/python3)
    [ -z "${PYTHONS:-}" ] || read -ra candidates <<< "$PYTHONS"
    for python in "${candidates[@]}"; do
        "$python" -c 'import sys; print(sys.version_info[1], sys.executable, sep="\t")' 2> /dev/null || true
    done | sort --numeric-sort --unique --key=1,1 | cut --fields=2
}

set_up() {
    [ "$(uname -sm)" = "Linux x86_64" ] || unavailable "the wheels are built on x86-64 Linux; elsewhere, cibuildwheel builds those of that machine."
    mapfile -t found < <(pythons)
    { [ ${#found[@]} -gt 1 ] && "${found[0]}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; } \
        || unavailable "Python 3.11 and a newer one are needed, and this machine has ${found[*]:-neither}. Name them: PYTHONS='python3.11 python3.12'."
    command -v aarch64-linux-gnu-g++ > /dev/null \
        || unavailable "the compiler for ARM64 is missing. Install g++-aarch64-linux-gnu, or run make survey-arm64, which unpacks it."
    [ -e "$tools/python" ] || "${found[0]}" -m venv "$place/tools"
    "$tools/pip" install --quiet --constraint constraints.txt pip
    "$tools/pip" install --quiet --group release
}

sdist() {
    rm -rf dist "$place"/xhat-*
    PIP_CONSTRAINT=constraints-build.txt "$tools/python" -m build --sdist --outdir dist .
    # With today's times, so that nothing which an earlier run compiled is taken for a newer file's object.
    tar --extract --touch --file dist/xhat-*.tar.gz --directory "$place"
}

# The objects of the kernels are the same for every Python, so the builds for a processor share a folder. They are kept
# where scikit-build-core finds no sign that its own path has changed, which differs in each isolated build.
shared_folder() {
    rm -f "$place/$1/CMakeCache.txt" "$place/$1/.skbuild-info.json"
    echo "build-dir=$place/$1"
}

# wheel PYTHON PROCESSOR
wheel() {
    local python=$1 processor=$2 compiler=g++ suffix settings=()
    if [ "$processor" != x86_64 ]; then
        compiler=$processor-linux-gnu-g++
        settings+=(-C cmake.define.CMAKE_SYSTEM_NAME=Linux -C "cmake.define.CMAKE_SYSTEM_PROCESSOR=$processor")
    fi
    suffix=$("$python" -c 'import sys; print("cpython-3%d" % sys.version_info[1])')
    CXX=$compiler _PYTHON_HOST_PLATFORM=linux-$processor SETUPTOOLS_EXT_SUFFIX=.$suffix-$processor-linux-gnu.so \
        "$tools/pip" --python "$python" wheel --no-deps --quiet --wheel-dir "$place/unrepaired" \
        --build-constraint constraints-build.txt "${settings[@]}" \
        -C cmake.define.XHAT_BUNDLE_OPENMP=ON -C "$(shared_folder "$processor")" "$place"/xhat-*/
}

build() {
    sdist
    rm -rf "$place/unrepaired"
    local processor wheel
    for processor in x86_64 aarch64; do
        wheel "${found[0]}" "$processor"
        wheel "${found[1]}" "$processor"
    done
    for wheel in "$place"/unrepaired/*.whl; do
        PATH="$tools:$PATH" "$tools/auditwheel" repair --wheel-dir dist "$wheel"
    done
}

check() {
    "$tools/twine" check --strict dist/*
    "$tools/abi3audit" --strict dist/*-abi3-*.whl
    "$tools/check-wheel-contents" dist/*.whl
    "$tools/python" tools/check_wheels.py dist/*.whl
}

# environment NAME PYTHON: build/wheels/NAME, with pytest and what the tests import.
environment() {
    rm -rf "${place:?}/$1"
    "$2" -m venv --without-pip "$place/$1"
    "$tools/pip" --python "$place/$1/bin/python" install --quiet --constraint constraints.txt \
        hypothesis ml_dtypes numpy pytest threadpoolctl
}

# The tests of the sdist, with the xhat that is installed in the environment NAME.
run_tests() {
    local name=$1
    shift
    echo "Tests with $name"
    (cd "$place"/xhat-*/ && "$place/$name/bin/python" -c 'import sys, xhat; sys.exit(not xhat.__file__.startswith(sys.prefix))' \
        && "$place/$name/bin/python" -m pytest --quiet "$@")
}

core=(tests/test_kernels.py tests/test_numpy.py tests/test_ops.py tests/test_processes.py)

try_wheels() {
    local python version wheel
    for python in "${found[@]}"; do
        version=$("$python" -c 'import sys; print("3%d" % sys.version_info[1])')
        wheel=$(echo dist/*-cp"$version"-*_x86_64.whl)
        [ -e "$wheel" ] || wheel=$(echo dist/*-abi3-*_x86_64.whl)
        environment "wheel-$version" "$python"
        "$tools/pip" --python "$place/wheel-$version/bin/python" install --quiet --no-deps "$wheel"
        "$tools/pip" --python "$place/wheel-$version/bin/python" install --quiet --constraint constraints.txt "$torch" 2> /dev/null \
            || echo "pip finds no $torch for $version: what needs PyTorch is left out with this Python."
        run_tests "wheel-$version" tests/wheel "${core[@]}"
    done
}

# As pip installs it anywhere: without the runtime of OpenMP. The kernels' objects are those that the wheels are made from.
try_sdist() {
    environment sdist "${found[0]}"
    "$tools/pip" --python "$place/sdist/bin/python" install --quiet --no-deps --build-constraint constraints-build.txt \
        -C "$(shared_folder x86_64)" "$place"/xhat-*/
    run_tests sdist "${core[@]}"
}

# The wheel for ARM64 in QEMU, where tools/arm64.sh has left an ARM64 Python 3.11 with NumPy.
try_arm64() {
    local python=$PWD/build/arm64/root/usr/bin/xhat-python
    if [ ! -x "$python" ]; then
        echo "make survey-arm64 makes an emulated ARM64 Python. Without it the wheels for ARM64 are left untested."
        return
    fi
    rm -rf "$place/arm64"
    "$tools/python" -m zipfile -e dist/*-cp311-*_aarch64.whl "$place/arm64"
    echo "Tests with the wheel for ARM64"
    (cd "$place"/xhat-*/ && export PYTHONPATH=$place/arm64 \
        && "$python" -c 'import xhat; print(xhat.__file__, xhat.config())' \
        && "$python" -m pytest --quiet tests/test_numpy.py)
}

torch="torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu"
set_up
build
check
[ "$what" = all ] || exit 0
try_sdist
try_wheels
try_arm64
