"""D3D's gain on every bed: JHMDB first, each with its record, none without one; and the figure."""

import pytest

from d3d.report import beds, regimes
from d3d.report.claims import read_claims
from d3d.study import archive, records
from d3d.study.plan import JHMDB
from tests.report.test_kinds import RIGHT, SPLITS, write_split
from tests.study.test_records import record

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
PILOT = ("keep-split1", "keep-split2", "keep-split3")
# Top-1 of the students on sprites; every seed is .01 above the last, and D3D .002 more.
STUDENTS = {"rgb_longer": 0.8, "class_mean": 0.82, "flow_shuffled": 0.82, "d3d": 0.825}


def write_cell(folder, name, students=STUDENTS):
    for seed in range(3):
        for arm, top1 in students.items():
            value = top1 + 0.01 * seed + (0.002 * seed if arm == "d3d" else 0)
            run = record(experiment="distill", arm=arm, seed=seed, metrics={"iid/top1": value})
            records.write(folder / name, run)
    return archive.pack(folder / name)


@pytest.fixture
def sprites(tmp_path):
    anchor = write_cell(tmp_path, "sprites")
    cells = [write_cell(tmp_path, "sprites-rho0.5"), write_cell(tmp_path, "sprites-rolled", {"rgb_longer": 0.7})]
    return anchor, archive.merge(cells, tmp_path / "sprites-cells", as_cells=True)


def test_the_beds_come_with_their_records_and_real_video_first(tmp_path, sprites):
    right = RIGHT | {"class_mean": RIGHT["flow_shuffled"]}
    parts = [write_split(tmp_path, name, right=right) for name in SPLITS]
    jhmdb = archive.merge(parts, tmp_path / "jhmdb-splits", as_cells=True)
    read = beds.read_beds(jhmdb, SPLITS, *sprites)
    # The cell without D3D has no part of the gain.
    assert {bed.name: bed.source for bed in read} == {
        "JHMDB": "jhmdb-splits.jsonl, 3 seeds",
        "sprites, anchor": "sprites.jsonl, 3 seeds",
        "sprites, appearance tells less": "sprites-cells.jsonl, 3 seeds",
    }
    assert next(iter(read)).name == "JHMDB"
    motion = {bed.name: bed.findings["motion"].interval.mean for bed in read}
    # One clip of twelve; and .005 + .002.
    assert motion["JHMDB"] == pytest.approx(1 / 12)
    assert motion["sprites, anchor"] == pytest.approx(0.007)
    over_clips = read[0].findings["motion"].over_clips
    assert over_clips.low < over_clips.mean == pytest.approx(1 / 12)
    assert read[1].findings["motion"].over_clips is None


def test_a_bed_without_all_splits_is_left_out(tmp_path, sprites):
    assert beds.read_beds(JHMDB, (*PILOT, "keep-split4"), *sprites)[0].name == "sprites, anchor"
    absent = tmp_path / "absent.jsonl"
    (bed,) = beds.read_beds(JHMDB, PILOT, absent, absent)
    assert bed.source == "jhmdb.jsonl, 2 seeds"
    assert list(bed.findings) == list(regimes.PARTS)


def test_the_grey_bands_are_those_of_the_rules(sprites):
    margins = {bed.name.split(",")[0]: bed.margin for bed in beds.read_beds(JHMDB, PILOT, *sprites)}
    for name, rules in (("JHMDB", "jhmdb"), ("sprites", "second")):
        (h2a,) = (claim for claim in read_claims(f"book/claims_{rules}.yaml").claims if claim.id == "H2a")
        assert margins[name] == h2a.conditions[0].equivalence_margin


@figure
def test_beds(sprites):
    return beds.draw(beds.read_beds(JHMDB, PILOT, *sprites))
