#!/usr/bin/env bash
# xhat on the oldest x86-64 processor that NumPy runs on (Nehalem, 2008), emulated by QEMU: x86-64-v2 is chosen, and every
# kernel gives the bits that it gives here.
#
# Needs a Python that imports xhat (PYTHON, by default .venv/bin/python), and what debian_packages.sh needs. Leaves
# build/old-cpu behind, and changes nothing else. Status 69: not possible here.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian_packages.sh
native=${PYTHON:-.venv/bin/python}
place=$PWD/build/old-cpu
qemu=$place/usr/bin/qemu-x86_64-static
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

need_debian
need_xhat "$native"
[ -x "$qemu" ] || unpack_qemu "$place" x86_64
"$native" tests/survey.py > "$place/new.json" &
"$qemu" -cpu Nehalem "$native" tests/survey.py > "$place/nehalem.json"
wait $!
grep -q '"isa": "x86-64-v2"' "$place/nehalem.json" || { echo "$0: another instruction set than x86-64-v2 was chosen." >&2; exit 1; }
"$native" tools/same_digests.py "$place/new.json" "$place/nehalem.json"
