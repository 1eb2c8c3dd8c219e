"""The built book in a real browser; `make book` builds it."""

import os
import re

import pytest

from d3d.data.sprite_classes import CLASSES
from d3d.report import ledger
from d3d.report.stats import proportion_interval
from d3d.study import records
from d3d.study.records import ROOT
from tests.book.conftest import HTML

pytestmark = pytest.mark.slow
PAGES = [
    "index",
    *(f"chapters/{name}" for name in sorted(p.stem for p in (ROOT / "notebooks/chapters").glob("*.ipynb"))),
    "plan",
    "howto",
    "cluster",
    "videos",
    "generated/evidence",
    "generated/status",
    "generated/parameters",
    "generated/cost",
    "generated/ledger",
    "generated/scale",
    "generated/api",
    "question",
    "threats",
    "extend",
    "glossary",
    "checklist",
    "cite",
    "executed",
    "executed/train",
    "bibliography",
]
# How many images a chapter has at least.
FIGURES = {
    "data": 4,
    "streams": 3,
    "missing_motion": 4,
    "distillation": 10,
    "attention": 4,
    "detection": 2,
    "selection": 1,
    "first_study": 1,
    "network": 1,
    "rerun": 2,
    "verdict": 1,
}
# What Sphinx writes where an image has no alternative text.
IMAGE_PATH = re.compile(r"(^|/)_(images|static)/|\.(png|svg|jpe?g|gif|webp)$")


def test_every_image_has_an_alternative_text(browser):
    pages = sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)
    assert {f"{name}.html" for name in PAGES} <= {path.relative_to(HTML).as_posix() for path in pages}
    page, missing = browser.new_page(), []
    for path in pages:
        page.goto(path.as_uri(), wait_until="domcontentloaded")
        images = page.evaluate("[...document.images].map(i => [i.src, i.getAttribute('alt') || ''])")
        missing += [(path.name, source, alt) for source, alt in images if not alt.strip() or IMAGE_PATH.search(alt)]
    page.close()
    assert not missing


@pytest.mark.parametrize(("name", "figures"), FIGURES.items())
def test_a_chapter_has_all_of_its_figures(visit, name, figures):
    page, _, _ = visit(f"chapters/{name}")
    assert page.locator("article .cell_output img").count() >= figures


def test_the_front_page_has_findings_verdicts_and_their_limits(visit):
    page, _, _ = visit("index")
    findings = page.locator("article section").nth(1).locator("li").all_inner_texts()
    assert len(findings) == 3
    assert all(re.search(r"[+−]?0\.\d{3} \[[+−]?0\.\d{3}, [+−]?0\.\d{3}\]", text) for text in findings)
    rows = page.locator("article table tbody tr")
    verdicts = [rows.nth(i).locator("td").first.inner_text() for i in range(rows.count())]
    judged = {ledger.SUPPORTED, ledger.REFUTED, ledger.ZERO, ledger.UNDECIDED}
    assert len(verdicts) == 3
    assert set(verdicts) <= judged | {f"{word} on sprites" for word in judged}
    text = page.locator("article").inner_text()
    assert "B1 to B11 needs data" in text or "B1 to B11: needs data" in text
    assert "These findings rest on no real video" in text
    assert "nobody here has read the paper’s full text" in text.replace("'", "’")


def test_a_phone_shows_the_verdicts_of_the_front_page(visit):
    page, _, _ = visit("index", width=390)
    cells = page.locator("article table tbody td")
    for i in range(cells.count()):
        box = cells.nth(i).bounding_box()
        assert box["x"] + box["width"] <= 390


def test_formulas_are_typeset(visit):
    page, _, _ = visit("plan")
    page.wait_for_selector("mjx-container", timeout=20_000)
    assert page.locator("mjx-container").count() >= 2


def test_the_status_page_lists_every_notebook(visit):
    page, _, _ = visit("generated/status")
    rows = page.locator("article table").first.locator("tbody tr")
    assert rows.count() >= 30
    outcomes = {rows.nth(i).locator("td").nth(4).inner_text() for i in range(rows.count())}
    assert outcomes == {"done"}


def test_code_can_be_unfolded(visit):
    page, _, _ = visit("chapters/streams")
    source = page.locator("details.hide.above-input").first
    assert not source.locator("pre").first.is_visible()
    source.locator("summary").click()
    assert "plots.accuracy" in source.inner_text()


def test_both_streams_of_the_smoke_study_are_above_chance():
    results = ROOT / "results/smoke"
    if not results.is_dir() and not os.environ.get("CI"):
        pytest.skip("the smoke study has not been run")
    table = records.load(results, needs=["train"])
    clips = records.of_first_seed(results, "train", ["rgb"])[0].params["test_clips"]
    # RGB's twins are RGB networks too. Two seeds give no useful interval over seeds, so it is over all predictions.
    for arm, arms in {"rgb": ["rgb", "rgb_twin"], "flow": ["flow"]}.items():
        values = table[table["arm"].isin(arms) & (table["metric"] == "iid/top1")]["value"]
        assert len(values) >= 2
        interval = proportion_interval(round(values.sum() * clips), len(values) * clips)
        assert interval.low > 1 / len(CLASSES), f"{arm}: {interval}"
