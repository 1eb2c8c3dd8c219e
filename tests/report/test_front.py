"""The front page: its numbers by hand from few records, its claims, and its copy in README.md."""

import shutil

import pandas as pd
import pytest

from d3d.report import comparisons, front
from d3d.report.claims import read_claims
from d3d.report.ledger import judge
from d3d.study import records
from d3d.study.plan import PUBLISHED
from d3d.study.records import ROOT

COLUMNS = ["experiment", "arm", "seed", "metric", "value", "stand_in"]


def table(**arms):
    """Records of iid top-1: arms and their values by seed."""
    rows = [("train", arm, seed, "iid/top1", v, True) for arm, values in arms.items() for seed, v in enumerate(values)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_statement_that_the_records_contradict_is_refused():
    # Differences .2, .3, .4: mean .3, half width 4.303 * .1 / sqrt(3) = .248.
    rows = table(d3d=[0.6, 0.7, 0.8], rgb=[0.4, 0.4, 0.4])
    comparisons.holds(rows, "d3d - rgb", "iid/top1", above=0.05)
    comparisons.holds(rows, "d3d - rgb", "iid/top1", above=0.05, below=0.55)
    comparisons.holds(rows, "rgb - d3d", "iid/top1", below=-0.05)
    with pytest.raises(ValueError, match=r"d3d - rgb in iid/top1 lies above 0.06, but it is 0.300 \[0.052, 0.548\]"):
        comparisons.holds(rows, "d3d - rgb", "iid/top1", above=0.06)
    with pytest.raises(ValueError, match=r"lies below 0.54, but it is"):
        comparisons.holds(rows, "d3d - rgb", "iid/top1", below=0.54)
    with pytest.raises(ValueError, match="flow - rgb in iid/top1 lies above 0, but it is needs data"):
        comparisons.holds(rows, "flow - rgb", "iid/top1", above=0)


def test_the_numbers_are_those_of_the_published_study():
    numbers = front.front_numbers()
    published = records.load(PUBLISHED)
    mean = published[(published["arm"] == "two_stream") & (published["metric"] == "iid/top1")]["value"].mean()
    assert numbers["front_two_stream"].startswith(f"{mean:.3f} [")
    counts = [int(numbers[f"front_motion_{word}"]) for word in ("met", "undecided", "failed")]
    assert sum(counts) == int(numbers["front_motion"]) == 6
    assert int(numbers["front_appearance"]) == 3
    assert numbers["front_conditions"] == "9"
    # The sentences name the direction of a difference, so its number has no sign.
    texture = published[published["metric"] == "Mixed_4f/texture/accuracy"].groupby("arm")["value"].mean()
    assert numbers["front_texture"].startswith(f"{texture['rgb_longer'] - texture['d3d']:.3f} [0.")
    assert numbers["front_closed"].endswith("]")
    assert " % [" in numbers["front_closed"]
    glued = set(front.GLUED.findall((ROOT / "book/index.md").read_text()))
    assert glued == set(numbers)


def test_a_page_whose_sentences_no_longer_hold_is_not_built(monkeypatch):
    published = records.load(PUBLISHED)
    equal = published["arm"].replace({"two_stream": "rgb_rgb"})
    swapped = published[equal != "rgb_rgb"]
    flat = [published[published["arm"] == "rgb_rgb"].assign(arm=arm) for arm in ("two_stream", "rgb_rgb")]
    monkeypatch.setattr(front.records, "load", lambda *_: pd.concat([swapped, *flat]))
    with pytest.raises(ValueError, match="the book says that two_stream - rgb_rgb in iid/top1 lies above 0"):
        front.front_numbers()


def test_a_front_page_whose_counts_no_longer_hold_is_not_built(monkeypatch):
    published = records.load(PUBLISHED)
    shape = published["metric"] == "Mixed_4f/shape/accuracy"
    worse = published.assign(value=published["value"].where(~(shape & (published["arm"] == "d3d")), 0.0))
    monkeypatch.setattr(front.records, "load", lambda *_: worse)
    with pytest.raises(ValueError, match=r"one on appearance violated; now they are: .*; supported, refuted, refuted"):
        front.front_numbers()


def test_the_claims_of_the_abstract_stand_first_and_the_rows_of_its_tables_in_a_line():
    text = front.claims_text(judge(read_claims(), records.load(PUBLISHED)))
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert [row.split("**")[3] for row in rows] == ["A1", "A2", "A3"]
    assert all(row.split("**")[1] in ("supported on sprites", "refuted on sprites") for row in rows)
    assert "Decided by hypothesis H2: 3 of 9 conditions met; violated: D3D − RGB-longer in probe accuracy" in rows[1]
    assert "B1 to B11: **needs data**" in text
    assert "H1" not in "".join(row.split("**")[3] for row in rows)


def test_a_page_without_markers_or_with_an_unknown_number_is_refused(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    for name in ("claims.yaml", "index.md"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book" / name)
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / PUBLISHED, tmp_path / PUBLISHED)
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "book/index.md"
    text = page.read_text()
    assert "**RGB misses motion that flow has.**" in front.readme_findings()
    page.write_text(text.replace("front_gap", "front_gasp"))
    with pytest.raises(ValueError, match="glues 'front_gasp', which front_numbers does not have"):
        front.readme_findings()
    page.write_text(text.replace(front.END, ""))
    with pytest.raises(ValueError, match=r"book/index\.md must hold the markers"):
        front.readme_findings()
