# `. tools/core_tests.sh`, then: core_tests [NAME]...    prints the files of the tests of the core that an environment with
# pytest alone can run: not those that run other programs or need further packages, and not test_NAME.py. pytest runs a
# file that is named, whatever else it is told to leave out, so the files are listed one by one.
# shellcheck shell=bash

core_tests() {
    local file left_out
    left_out=$(IFS='|'; echo "benchmarks|build|demo|examples|makefile|other_libraries|readme|maintainers_scripts${*:+|$*}")
    for file in tests/test_*.py; do
        [[ "$file" =~ ^tests/test_($left_out).py$ ]] || echo "$file"
    done
}
