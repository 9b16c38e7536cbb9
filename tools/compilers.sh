#!/usr/bin/env bash
# Compiles the kernels with several compilers, warnings as errors, and compares the bits of their results:
#
#   tools/debian.sh tools/compilers.sh [COMPILER[:ISAS]...]      GCC 12 to 16, Clang with LLVM's OpenMP, and clang-tidy
#
# ISAS are the instruction sets, as in CONTRIBUTING.md: one ("g++-12:v3") compiles in a third of the time that all take.
# Each compiler fills a folder of build/compilers with an installation. There tests/survey.py runs every kernel, for each
# instruction set that this processor has; the digests must be those of the first compiler. clang-tidy reads the sources
# for one instruction set. Builds are incremental: the first takes half an hour of one core, the next ones a few minutes.
#
# Needs the compilers, a Python with venv and headers (PYTHON), and a network for what the build and the survey import.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/unavailable.sh
place=$PWD/build/compilers
python=${PYTHON:-$(command -v python3.13 || command -v python3)}
case $(uname -m) in
    x86_64) all='v2;v3;v4' some=(g++-12:v4 g++-13:v3 g++-14:v2 g++-15:v4 g++-16 clang++ clang-tidy) ;;
    *) all=baseline some=(g++-12 g++-13 g++-14 g++-15 g++-16 clang++ clang-tidy) ;;
esac
[ $# -gt 0 ] || set -- "${some[@]}"

for one in "$@"; do
    command -v "${one%%:*}" > /dev/null || unavailable "there is no ${one%%:*} here."
done
"$python" -c 'import ensurepip' 2> /dev/null || unavailable "${python:-no Python} can't make an environment here: PYTHON names another."

[ "$place/venv/done" -nt constraints-build.txt ] || {
    "$python" -m venv --clear "$place/venv"
    "$place/venv/bin/python" -m pip install --quiet --requirement constraints-build.txt
    "$place/venv/bin/python" -m pip install --quiet --constraint constraints.txt numpy ml_dtypes hypothesis pytest
    touch "$place/venv/done"
}
export PATH="$place/venv/bin:$PATH"

build() {
    local compiler=$1 isas=$2
    CXX=$compiler pip install --quiet --no-build-isolation --no-deps --no-index --upgrade --target "$place/$compiler" \
        --config-settings "build-dir=$place/$compiler.objects" --config-settings cmake.define.XHAT_WARNINGS=ON \
        --config-settings "cmake.define.XHAT_ISAS=$isas" .
}

survey() {
    local isa
    local -x PYTHONPATH="$place/$1"
    for isa in $(python -c 'from xhat import _kernels; print(*_kernels.isa_available())'); do
        XHAT_ISA=$isa OMP_NUM_THREADS=2 python tests/survey.py > "$place/$1.json"
        [ -e "$place/first.json" ] || cp "$place/$1.json" "$place/first.json"
        python tools/same_digests.py "$place/first.json" "$place/$1.json"
    done
}

# The static analyzer follows the paths of each kernel; for the hundreds that kernels.cpp makes it does not end in minutes.
tidy() {
    cmake -S . -B "$place/tidy" -G Ninja --log-level=WARNING -DSKBUILD=2 -DXHAT_ISAS="$1" -DCMAKE_CXX_COMPILER=clang++ \
        -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DPython_EXECUTABLE="$place/venv/bin/python" \
        -Dnanobind_DIR="$(python -m nanobind --cmake_dir)" > /dev/null
    clang-tidy -p "$place/tidy" --quiet kernels/engine/*.cpp kernels/python/*.cpp
    clang-tidy -p "$place/tidy" --quiet --checks='-clang-analyzer-*' kernels/isa/kernels.cpp
}

rm -f "$place/first.json"
for one in "$@"; do
    compiler=${one%%:*} isas=${one#*:}
    [ "$isas" != "$one" ] || isas=$all
    "$compiler" --version | head -n 1
    if [ "$compiler" = clang-tidy ]; then
        tidy "${isas##*;}"
    else
        build "$compiler" "$isas"
        survey "$compiler"
    fi
done
