#!/usr/bin/env bash
# Tests one wheel, that of the stable ABI, with every later Python, and the newest NumPy that pip finds for each:
#
#   tools/debian.sh tools/pythons.sh [WHEEL]      one for cp312-abi3; by default it is built, with the first Python
#
# PYTHONS names other Pythons (PYTHONS=python3.12). Runs the tests of the core, and not those that need further packages
# or run other programs. Each Python gets half an hour; one that fails does not keep the next from its turn. Leaves
# build/pythons behind: an environment for each Python, and the wheel.
#
# Needs these Pythons with venv, for a build also headers and a compiler, and a network.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/unavailable.sh
. tools/core_tests.sh
read -ra pythons <<< "${PYTHONS:-python3.13 python3.14 python3.15}"
wheel=${1:-}
[ -z "$wheel" ] || [ -f "$wheel" ] || { echo "$0: there is no file $wheel, expected a wheel." >&2; exit 2; }
place=build/pythons
limit=1800 each=300  # seconds

for python in "${pythons[@]}"; do
    "$python" -c '' 2> /dev/null || unavailable "there is no $python here."
    [ -e "$place/$python/done" ] || {
        "$python" -m venv --clear "$place/$python"
        "$place/$python/bin/python" -m pip install --quiet \
            numpy ml_dtypes hypothesis pytest pytest-timeout pytest-xdist sympy threadpoolctl
        touch "$place/$python/done"
    }
done

if [ -z "$wheel" ]; then
    rm -f "$place"/*.whl
    "$place/${pythons[0]}/bin/python" -m pip wheel --quiet --no-deps --build-constraint constraints-build.txt \
        --config-settings "build-dir=$PWD/$place/objects" --wheel-dir "$place" .
    wheel=$(echo "$place"/*-abi3-*.whl)
fi

# shellcheck disable=SC2119  # nothing more is left out
mapfile -t files < <(core_tests)
failed=()
for python in "${pythons[@]}"; do
    "$place/$python/bin/python" -m pip install --quiet --no-deps --no-index --force-reinstall "$wheel"
    "$place/$python/bin/python" -c 'import sys, numpy, xhat; print(f"Python {sys.version.split()[0]}, NumPy {numpy.__version__}")'
    timeout --kill-after=10 "$limit" "$place/$python/bin/python" -m pytest -q -p no:cacheprovider --timeout="$each" \
        --numprocesses "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "${files[@]}" \
        || failed+=("$python")
done
[ ${#failed[@]} = 0 ] || { echo "$0: tests failed with ${failed[*]}." >&2; exit 1; }
