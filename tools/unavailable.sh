# `. tools/unavailable.sh`, then: unavailable SENTENCE    ends with status 69 (EX_UNAVAILABLE): not possible here.
# shellcheck shell=bash

unavailable() {
    echo "$0: $*" >&2
    exit 69
}
