"""What holds on every page of the built book: links, weight, search, and access for every reader."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pandas as pd
import pytest

from d3d.study.records import ROOT
from tests.book.conftest import HTML, page_path, pages

pytestmark = pytest.mark.slow
MB = 10**6
# Made by Sphinx, and in no list of pages.
SPECIAL = {"genindex", "search", "py-modindex"}
# Source code looks the same on every page that shows it.
SOURCES = ("_modules/d3d/s3dg/network", "_modules/index")
NAMES = [name for name in pages() if not name.startswith("_modules/") or name in SOURCES]
# Serious findings of axe-core in what the theme writes, with the reason why they stay.
TOLERATED: dict[str, str] = {}


class _Page(HTMLParser):
    """The links, sources and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        self.links += [v for name in ("href", "src") if (v := attributes.get(name)) and tag != "use"]
        self.anchors |= {v for name in ("id", "name") if (v := attributes.get(name))}


@pytest.fixture(scope="module")
def parsed():
    """Every page of the book, parsed, by its path without `.html`."""
    if not HTML.is_dir():
        pytest.skip("the built book missing")
    return {name: _Page(page_path(name).read_text()) for name in pages()}


def targets(name: str, page: _Page) -> list[tuple[str, str]]:
    """The paths in the site that a page links to, each with its anchor."""
    inside = [link for link in page.links if not urlparse(link).scheme and not link.startswith("//")]
    resolved = [urldefrag(urljoin(f"/{name}.html", link)) for link in inside]
    return [(unquote(urlparse(url).path).lstrip("/") or f"{name}.html", unquote(anchor)) for url, anchor in resolved]


def test_every_internal_link_and_anchor_exists(parsed):
    broken = []
    for name, page in parsed.items():
        for path, anchor in targets(name, page):
            target = path.removesuffix(".html")
            if not (HTML / path).exists():
                broken.append((name, path))
            elif anchor and target in parsed and anchor not in parsed[target].anchors:
                broken.append((name, f"{path}#{anchor}"))
    assert not broken


def test_no_page_is_an_orphan(parsed):
    sources = {re.sub(r"\.html$", "", path) for name, page in parsed.items() for path, _ in targets(name, page)}
    assert set(parsed) - SPECIAL <= sources
    # The list of pages, which stands beside every page, names them all.
    listed = {path.removesuffix(".html") for path, _ in targets("index", parsed["index"])}
    listed |= {name for name in parsed if name.startswith("_modules/")}
    assert set(parsed) - SPECIAL - listed == set()


def test_the_index_lists_terms_and_functions(parsed):
    listed = {f"{path}#{anchor}" for path, anchor in targets("genindex", parsed["genindex"])}
    assert "glossary.html#term-endpoint" in listed
    assert "generated/api.html#d3d.s3dg.network.s3dg" in listed


@pytest.mark.parametrize("term", ["endpoint", "selectivity", "flow shuffled", "share m", "smoke study", "within class"])
def test_the_glossary_explains_a_term(parsed, term):
    assert f"term-{term.replace(' ', '-')}" in parsed["glossary"].anchors


def test_a_page_links_the_first_use_of_a_term_only(visit):
    page, _, _ = visit("chapters/missing_motion")
    links = page.locator("a.glossary-term")
    targets_ = [links.nth(i).get_attribute("href") for i in range(links.count())]
    assert "../glossary.html#term-random-weights" in targets_
    assert len(targets_) == len(set(targets_))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_without_errors_and_is_light(visit, address, name):
    page, requests, errors = visit(name)
    assert not errors
    assert not [url for url in requests if not url.startswith((f"{address}/", "data:"))]
    assert page.locator("h1").count() >= 1
    assert not page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    text = page.locator("main").inner_text()
    assert "{glue:" not in text
    assert "Traceback" not in text
    # Files that a page loads, with its own; films come when they are on the screen.
    loaded = {urlparse(url).path.lstrip("/") for url in requests if url.startswith(address)}
    weight = sum((HTML / unquote(path)).stat().st_size for path in loaded if not path.endswith(".mp4"))
    assert weight < 3 * MB, f"{weight / MB:.1f} MB"
    assert (page.locator(".math").count() > 0) == any("mathjax" in path for path in loaded)
    # Icons that were left out of the subset would stay empty.
    assert page.locator("svg.svg-inline--fa path[d]").count() >= page.locator("svg.svg-inline--fa").count() > 0


def serious_findings(page) -> dict[str, list[str]]:
    """What axe-core finds on a page that keeps some readers out: rule to elements."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    return {
        v["id"]: [node["html"][:200] for node in v["nodes"]]
        for v in violations
        if v["impact"] in ("serious", "critical") and v["id"] not in TOLERATED
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_on_a_phone(visit, name):
    page, _, _ = visit(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # What is wider scrolls in a box of its own, which the keyboard reaches.
    cut = page.evaluate(
        """[...document.querySelectorAll("article img, article table, article svg, article video")].filter(e => {
            if (!e.checkVisibility() || e.getBoundingClientRect().right <= innerWidth + 1) return false;
            for (let box = e; box && box.tagName != "ARTICLE"; box = box.parentElement)
              if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)
                  && box.scrollWidth > box.clientWidth && box.tabIndex == 0) return false;
            return true;
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert not cut
    assert not serious_findings(page)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_in_the_dark(visit, name):
    page, _, _ = visit(name, color_scheme="dark")
    assert page.locator("html[data-theme='dark']").count()
    assert not serious_findings(page)


def test_search_finds_pages_by_their_titles(visit):
    page, _, errors = visit("search?q=distillation")
    page.wait_for_selector("#search-results li a")
    titles = page.locator("#search-results li a").all_inner_texts()
    assert "Does distillation add motion to the spatial stream?" in titles
    assert not [title for title in titles if not title.strip() or "<no title>" in title]
    assert not errors


def playing(page) -> int:
    """How many films of a page are playing."""
    return page.evaluate("[...document.querySelectorAll('video')].filter(v => !v.paused).length")


def test_films_play_on_the_screen_and_a_button_stops_them(visit):
    page, _, _ = visit("chapters/data", reduced_motion="no-preference")
    film = page.locator("figure.film").first
    film.scroll_into_view_if_needed()
    page.wait_for_function("!document.querySelector('video').paused")
    assert film.locator("video").evaluate("v => v.readyState > 1 && v.videoWidth > 0")
    # Nothing covers the picture.
    assert not film.locator("video[controls]").count()
    film.get_by_role("button", name=re.compile("Pause")).click()
    page.wait_for_function("document.querySelector('video').paused")
    page.mouse.wheel(0, 4000)
    page.wait_for_timeout(300)
    film.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert film.locator("video").evaluate("v => v.paused")


def test_films_wait_for_readers_who_want_little_motion(visit):
    page, _, _ = visit("chapters/data", reduced_motion="reduce")
    film = page.locator("figure.film").first
    film.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    assert playing(page) == 0
    film.get_by_role("button", name=re.compile("Play")).click()
    page.wait_for_function("!document.querySelector('video').paused")
    assert playing(page) == 1


def test_every_film_of_the_book_loads(visit):
    for name in pages():
        if "<video" in page_path(name).read_text():
            page, _, _ = visit(name)
            page.evaluate("document.querySelectorAll('video').forEach(v => { v.preload = 'auto'; v.load(); })")
            page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 1)")


def test_figures_have_numbers_anchors_and_captions(parsed):
    for path in sorted((ROOT / "notebooks/chapters").glob("*.ipynb")):
        text = page_path(f"chapters/{path.stem}").read_text()
        figures = re.findall(r'<figure class="book-figure" id="((?:figure|table|films)-\d+)">', text)
        assert len(figures) == len(set(figures)) == text.count('<div class="output-box">')
        # Every picture that a chapter draws has a caption.
        assert not re.findall(r'<div class="cell_output docutils container">\s*<img', text), path.stem


def test_a_chapter_names_its_code_its_records_and_its_command(parsed):
    for path in sorted((ROOT / "notebooks/chapters").glob("*.ipynb")):
        (box,) = re.findall(
            r'<div class="provenance.*?</div>', page_path(f"chapters/{path.stem}").read_text(), re.DOTALL
        )
        assert f'papermill</span> <span class="pre">notebooks/chapters/{path.name}' in box
        (numbers,) = re.findall(r'href="([^"]+\.csv)">all numbers as a table', box)
        table = pd.read_csv(page_path(f"chapters/{path.stem}").parent / numbers)
        assert {"experiment", "arm", "seed", "metric", "value"} <= set(table.columns)
        assert len(table)
    code = {anchor for _, anchor in targets("chapters/distillation", parsed["chapters/distillation"])}
    assert {"d3d.report.plots.metrics", "d3d.report.plots.differences", "d3d.report.plots.lambdas"} <= code
