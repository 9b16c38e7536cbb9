#!/usr/bin/env bash
# Runs the tests of xhat.torch with other versions of PyTorch, and prints a line for each: passed, failed, skipped.
#
#   tools/torch_versions.sh 2.11.0 2.14.1 [-- tests/pytorch/test_layers.py ...]
#
# Needs what `make test` leaves in .venv (VENV), which has everything else that the tests use, and pip's access to the
# versions. A wheel of PyTorch for Linux on x86-64 brings its CUDA libraries, 5 GB for a version; where an index has a
# build for the CPU, name it in PIP_EXTRA_INDEX_URL and ask for it: 2.11.0+cpu. Leaves build/torch-VERSION.log with the
# failures, and nothing else: the environment, build/torch-VERSION, is removed after its tests (KEEP=1 keeps it). Status 1:
# tests failed with a version.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/unavailable.sh
root=$PWD
main=${VENV:-.venv}/bin/python
[[ $main == /* ]] || main=$root/$main
versions=()
tests=()
while (($#)); do
    if [[ $1 == -- ]]; then shift; tests=("$@"); break; fi
    [[ $1 == [0-9]* ]] || { echo "$0: '$1' is no version, expected some: make test-torch TORCH_VERSION='2.11.0 2.14.1'" >&2; exit 2; }
    versions+=("$1"); shift
done
((${#tests[@]})) || tests=(tests/pytorch --ignore tests/pytorch/gpu)  # Triton belongs to one version of PyTorch

if ((${#versions[@]} == 0)); then
    echo "$0: got no version, expected some: make test-torch TORCH_VERSION='2.11.0 2.14.1'" >&2
    exit 2
fi
if ! "$main" -c 'import xhat' 2>/dev/null; then
    unavailable "there is no xhat in $main. Run make test first, or name its environment: VENV=..."
fi

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
mkdir -p build
# PyTorch and what it asks for; the rest keeps the versions of the tests.
sed -E '/^(torch|torchvision|triton|sympy|setuptools)==/d' constraints.txt > build/torch-constraints.txt

failed=0
for version in "${versions[@]}"; do
    place=$root/build/torch-$version
    "$main" -m venv --clear --without-pip "$place"
    packages=$("$place/bin/python" -c 'import site; print(site.getsitepackages()[0])')
    # What is installed here comes first, then the environment of the tests, with its editable installation of xhat.
    "$main" -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' > "$packages/rest.pth"
    PIP_CONSTRAINT=build/torch-constraints.txt "$main" -m pip --python "$place/bin/python" \
        install --quiet --no-cache-dir "torch==$version" torchvision
    "$place/bin/python" -m pytest --quiet -p no:cacheprovider -rfE --tb=short --show-capture=no "${tests[@]}" \
        > "build/torch-$version.log" 2>&1 || failed=1
    echo "torch $version: $(tail -n 1 "build/torch-$version.log")"
    [[ -n ${KEEP:-} ]] || rm -rf "$place"
done
exit "$failed"
