"""Of each wheel of the command line: the page, the licences, one compiled module, and one runtime of OpenMP.

Ends with the sentences about what is wrong. Needs readme_renderer, which twine brings.
"""

import email
import re
import sys
from zipfile import ZipFile

from readme_renderer import markdown

NAMES = ("LICENSE", "LICENSES/nanobind.txt", "LICENSES/robin-map.txt", "LICENSES/libgomp.txt")


def faults(path: str) -> list[str]:
    """What is wrong with a wheel."""
    wheel = ZipFile(path)
    names = wheel.namelist()
    folder = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    page = markdown.render(metadata.get_payload()) or ""
    links = re.findall(r"(?:href|src)=\"([^\"]*)\"", page)
    relative = [link for link in links if not re.match("https?://|#", link)]
    found = [f"the page has relative links: {', '.join(relative)}"] if relative else []
    found += [f"the licence {name} is missing" for name in NAMES if f"{folder}/licenses/{name}" not in names]
    runtimes = [name for name in names if "omp" in name.rsplit("/", 1)[-1] and ".so" in name]
    if runtimes != ["xhat/libgomp.so.1"]:
        found.append(f"its runtimes of OpenMP are {runtimes}, not xhat/libgomp.so.1 alone")
    modules = [name for name in names if name.startswith("xhat/_kernels") and not name.endswith(".pyi")]
    if len(modules) != 1 or ("-abi3-" in path) != (modules == ["xhat/_kernels.abi3.so"]):
        found.append(f"its compiled modules are {modules}, not the one that its name tells")
    if not links:
        found.append("the page is empty")
    return found


if __name__ == "__main__":
    wrong = [f"{path}: {fault}" for path in sys.argv[1:] for fault in faults(path)]
    sys.exit("\n".join(wrong) or None)
