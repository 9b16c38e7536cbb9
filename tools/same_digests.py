"""Compares what tests/survey.py printed on two machines: `same_digests.py ONE OTHER`. Status 1: bits differ."""

import json
import sys
from pathlib import Path


def main(one: str, other: str) -> int:
    """Prints how many results there are, and those that differ."""
    a, b = (json.loads(Path(name).read_text("utf-8")) for name in (one, other))
    cases = a["found"].keys() | b["found"].keys()
    differ = sorted(k for k in cases if a["found"].get(k, [0])[0] != b["found"].get(k, [1])[0])
    print(
        f"{Path(one).stem} ({a['isa']}), {Path(other).stem} ({b['isa']}): {len(cases)} results, {len(differ)} differ"
    )
    print(*differ[:20], sep="\n", end="\n" if differ else "")
    return 1 if differ or not cases else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
