"""The documentation is one site: its links and anchors resolve, its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.paths import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
#: The first page for each kind of reader.
DOORS = ["first-job.md", "operating.md", "embedding.md", "changing.md"]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and code hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    names = re.findall(r"^#+ (.+?)\s*$", text, re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", name.lower()).strip()) for name in names}


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor of each link of a page to another file or heading."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", page.read_text())
    return [(path, anchor) for path, anchor in found if "://" not in path]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_anchors_of_links_exist(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_link_within_the_site(page: Path) -> None:
    assert [path for path, _ in links(page) if path.startswith("..")] == []


def test_the_first_page_leads_to_every_kind_of_reader() -> None:
    assert set(DOORS) <= {path for path, _ in links(ROOT / "docs/index.md")}
    assert set(DOORS) <= {path.removeprefix("docs/") for path, _ in links(ROOT / "README.md")}


def test_every_term_of_the_glossary_is_linked_and_in_order() -> None:
    terms = re.findall(r"^### (.+)$", (ROOT / "docs/glossary.md").read_text(), re.M)
    assert terms == sorted(terms, key=str.lower)
    linked = {anchor for page in PAGES for path, anchor in links(page) if path == "glossary.md"}
    assert {term.lower().replace(" ", "-") for term in terms} - linked == set()


class _Resources(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = {"script": "src", "img": "src", "link": "href", "iframe": "src"}.get(tag)
        self.addresses += [value for key, value in attrs if key == name and value]


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: script/bootstrap --dev")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    pages = list(tmp_path.glob("*.html"))
    assert {page.stem for page in PAGES} <= {page.stem for page in pages}
    for page in pages:
        resources = _Resources()
        resources.feed(page.read_text())
        assert [each for each in resources.addresses if re.match(r"(https?:)?//", each)] == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name
