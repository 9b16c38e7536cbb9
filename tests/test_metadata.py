"""What a package index and other readers of metadata are told: links that work, one address, one version."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = SETTINGS["project"]
SOURCE, DOCUMENTATION = PROJECT["urls"]["Source"], PROJECT["urls"]["Documentation"]
PAGE = SETTINGS["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")


def on_the_index(text: str) -> str:
    """A Markdown page as the package index gets it: the plugin of the build substitutes in this way."""
    for substitution in PAGE["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    return text.replace("$HFPR_VERSION", PROJECT["version"])


def links(text: str) -> list[str]:
    """The links and pictures of a Markdown page, whether written in Markdown or in HTML."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:href|src|srcset)=\"([^\"\s]+)", text)


def relative_links(text: str) -> list[str]:
    return [link for link in links(text) if not re.match(r"https?://|#", link)]


def test_the_page_on_the_index_has_no_relative_link() -> None:
    """They would point into the index, and the pictures would be missing."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert relative_links(readme), "nothing is tested here"
    assert relative_links(on_the_index(readme)) == []


def test_a_link_is_to_the_file_of_this_version_and_a_picture_to_its_bytes() -> None:
    here = (
        "[a](docs/a.md#part), ![b](docs/b.png), [![c](c.png)](c.md), [d](https://example.org/x), [e](#part)"
    )
    file, raw = f"{SOURCE}/blob/v{PROJECT['version']}", f"{SOURCE}/raw/v{PROJECT['version']}"
    assert on_the_index(here) == (
        f"[a]({file}/docs/a.md#part), ![b]({raw}/docs/b.png), [![c]({raw}/c.png)]({file}/c.md), "
        "[d](https://example.org/x), [e](#part)"
    )


def test_the_address_is_one() -> None:
    assert all(url.startswith((SOURCE, DOCUMENTATION)) for url in PROJECT["urls"].values())
    assert re.search(r"^repository-code: \"(.*)\"$", CITATION, flags=re.MULTILINE)[1] == SOURCE  # type: ignore[index]
    assert re.search(r"^url: \"(.*)\"$", CITATION, flags=re.MULTILINE)[1] == DOCUMENTATION  # type: ignore[index]


def test_a_citation_names_this_version_and_its_date() -> None:
    assert re.search(r"^version: (.*)$", CITATION, flags=re.MULTILINE)[1] == PROJECT["version"]  # type: ignore[index]
    released = re.search(
        rf"^## {re.escape(PROJECT['version'])}, (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    assert released, "CHANGELOG.md has no heading for this version"
    date = re.search(r"^date-released: (.*)$", CITATION, flags=re.MULTILINE)[1]  # type: ignore[index]
    assert released[1] in ("not released", date)


@pytest.mark.parametrize("library", ["nanobind", "robin-map", "libgomp"])
def test_a_wheel_has_the_licence_of_what_it_contains(library: str) -> None:
    assert "LICENSES/*" in PROJECT["license-files"]
    text = (ROOT / "LICENSES" / f"{library}.txt").read_text("utf-8")
    assert text.startswith(library.replace("robin-map", "tsl::robin_map")) and "Copyright" in text


def test_wheels_for_linux_are_built_with_openmps_runtime() -> None:
    """Otherwise auditwheel adds a renamed copy, which is a second pool of threads beside PyTorch's."""
    defined = SETTINGS["tool"]["cibuildwheel"]["linux"]["config-settings"]
    assert defined == {"cmake.define.XHAT_BUNDLE_OPENMP": "ON"}
    assert "option(XHAT_BUNDLE_OPENMP " in (ROOT / "CMakeLists.txt").read_text("utf-8")
