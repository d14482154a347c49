"""The documentation builds without a warning, has all that it should have, and loads nothing."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

import dynamo_probe as dp
from dynamo_probe import functional

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BASES = (dp.Instrument, dp.Probe, dp.Treatment)
PAGES = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
LOADING = {
    ("link", "href"),
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
}


class Tags(HTMLParser):
    """Takes down ids, and what a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if (tag, name) in LOADING and value:
                self.loaded.append(value)


def tags_of(page: Path) -> Tags:
    tags = Tags()
    tags.feed(page.read_text())
    return tags


def anchor(given: Any) -> str:
    if isinstance(given, ModuleType):
        return given.__name__
    return f"{given.__module__}.{given.__qualname__}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the documentation needs {package}: pip install 'dynamo-probe[docs]'")
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    # Proxies that nobody listens to: whatever would be fetched fails.
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    done = subprocess.run(command, cwd=ROOT, env=quiet | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def test_every_public_name_is_on_the_page_of_the_api(site: Path) -> None:
    ids = tags_of(site / "api/index.html").ids | tags_of(site / "api/modules.html").ids
    assert [name for name in dp.__all__ if anchor(getattr(dp, name)) not in ids] == []


def test_every_pure_function_is_on_its_page(site: Path) -> None:
    ids = tags_of(site / "api/functional.html").ids
    missing = [n for n in functional.__all__ if anchor(getattr(functional, n)) not in ids]
    assert missing == []


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert written == set(PAGES)
    assert [page for page in PAGES if not (site / page).with_suffix(".html").exists()] == []


def test_every_probe_and_every_treatment_has_a_heading_on_a_page() -> None:
    headings = [
        line.lstrip("# ")
        for page in PAGES
        if page.startswith(("probes/", "treatments/"))
        for line in (DOCS / page).read_text().splitlines()
        if line.startswith("#")
    ]
    instruments = [
        name
        for name in dp.__all__
        if inspect.isclass(getattr(dp, name))
        and issubclass(getattr(dp, name), dp.Instrument)
        and getattr(dp, name) not in BASES
    ]
    assert len(instruments) > 20
    assert [name for name in instruments if name not in headings] == []


def test_a_page_of_an_instrument_says_what_a_reader_looks_for() -> None:
    wanted = ("How to read its picture", "Cost", "Pitfalls")
    missing = [
        (page, heading)
        for page in PAGES
        if page.startswith(("probes/", "treatments/")) and not page.endswith("index.md")
        for heading in wanted
        if f"\n## {heading}\n" not in (DOCS / page).read_text()
    ]
    assert missing == []


def test_figures_stand_with_commands_and_files_that_exist() -> None:
    pages = [(page, (DOCS / page).read_text()) for page in PAGES]
    modules = {
        (page, module)
        for page, text in pages
        for module in re.findall(r"python\s+-m\s+(benchmarks[\w.]*)", text)
    }
    files = {
        (page, path)
        for page, text in pages
        for path in re.findall(r"`((?:benchmarks|tests)/[\w/.]+\.(?:md|py))`", text)
    }
    assert modules and files
    assert [one for one in modules if importlib.util.find_spec(one[1]) is None] == []
    assert [one for one in files if not (ROOT / one[1]).exists()] == []


def test_examples_in_docstrings_are_shown_as_code(site: Path) -> None:
    text = (site / "api/functional.html").read_text()
    assert "<blockquote>" not in text
    assert text.count(">&gt;&gt;&gt; <") > 10


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    foreign = [
        (str(page.relative_to(site)), address)
        for page in site.rglob("*.html")
        for address in tags_of(page).loaded
        if urlsplit(address).netloc
    ]
    assert foreign == []
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    addresses = re.findall(r"""(?:url\(|@import\s+)["']?([^"')]+)""", styles)
    assert [address for address in addresses if address.startswith(("http", "//"))] == []
    # The theme fetches a drawing library where a page has diagrams in this notation.
    assert [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()] == []
