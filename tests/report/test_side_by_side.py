"""The networks of one folder side by side: `d3d report compare`."""

import numpy as np
import pytest

from d3d.report import side_by_side
from d3d.study import archive
from d3d.study.records import Record, write
from tests.study.test_records import PROVENANCE


def cells(text):
    """The cells of a Markdown table, row by row, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:-")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def write_network(folder, arm, correct, *, experiment="train", split="folder/test", seed=3):
    """A record of a network of three classes that is right on these clips, of which a third has class 0."""
    correct = np.asarray(correct, bool)
    labels = np.arange(len(correct)) % 3
    logits = np.eye(3, dtype=np.float32)[np.where(correct, labels, (labels + 1) % 3)]
    arrays = {f"logits/{split}": logits, f"labels/{split}": labels}
    write(folder, Record(experiment, arm, seed, {}, {f"{split}/top1": correct.mean()}, False, PROVENANCE), arrays)


def first_right(n, total=100):
    return np.arange(total) < n


def test_networks_side_by_side(tmp_path):
    labels = np.array([0, 1, 1, 0])
    for experiment, arm, logits in [
        ("train", "rgb", [[1, 0]] * 4),
        ("fuse", "two_stream", [[1, 0], [0, 1], [0, 1], [1, 0]]),
    ]:
        arrays = {"logits/folder/test": np.array(logits, np.float32), "labels/folder/test": labels}
        write(tmp_path, Record(experiment, arm, 3, {}, {"folder/test/top1": 0.5}, False, PROVENANCE), arrays)
    lines = cells(side_by_side.compare(tmp_path))
    assert lines[0] == ["network", "seed", "split", "clips", "top-1"]
    # Wilson by hand for 2 of 4: the centre stays 1/2, half the width is z sqrt(1/16 + z²/64) / (1 + z²/4).
    z = 1.959964
    half = z * (1 / 16 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert lines[1] == ["RGB", "3", "folder/test", "4", f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"]
    assert lines[2][:4] == ["two-stream", "3", "folder/test", "4"]
    assert lines[2][4].startswith("1.000 [0.510, 1.000]")
    with pytest.raises(FileNotFoundError, match="no networks under"):
        side_by_side.compare(tmp_path / "none")


def test_a_difference_that_the_test_set_cannot_show_is_named(tmp_path):
    """Of 100 clips, RGB is wrong on 5 and flow on 6 that D3D gets right: only the second difference can be shown."""
    write_network(tmp_path, "d3d", first_right(80), experiment="distill")
    write_network(tmp_path, "rgb", first_right(75))
    write_network(tmp_path, "flow", first_right(74))
    # With the added clips 1/102 and 6/102: -5/102 ± 1.96 sqrt((7/102 - (5/102)²) / 102).
    half = 1.959964 * ((7 / 102 - (5 / 102) ** 2) / 102) ** 0.5
    interval = f"[{-5 / 102 - half:+.3f}, {-5 / 102 + half:+.3f}]".replace("-", "−")
    assert side_by_side.compare(tmp_path).splitlines()[-2:] == [
        "- folder/test, seed 3: 100 clips (one clip is 0.01) are too few to tell these from the best network, D3D: "
        f"RGB −0.050 {interval}.",
        "- Intervals of the first table are over its test clips; training with another seed changes top-1 as well.",
    ]


def test_networks_on_other_clips_are_not_paired(tmp_path):
    write_network(tmp_path, "rgb", first_right(75))
    write_network(tmp_path, "d3d", first_right(75, 101), experiment="distill")
    write_network(tmp_path, "flow", first_right(75), seed=4)
    assert "too few" not in side_by_side.compare(tmp_path)


def test_a_rerun_beside_the_published_study(tmp_path):
    """Wilson's interval of 75 of 100 is [0.657, 0.825]: 0.66 lies within it, 0.65 does not."""
    for published, arm in ((0.66, "rgb"), (0.65, "flow")):
        write_network(tmp_path / "here", arm, np.roll(first_right(75), 50 if arm == "flow" else 0))
        record = Record("train", arm, 3, {}, {"folder/test/top1": published}, False, PROVENANCE)
        write(tmp_path / "published", record)
    write_network(tmp_path / "here", "d3d", first_right(99), experiment="distill")
    study = archive.pack(tmp_path / "published")
    text = side_by_side.compare(tmp_path / "here", study)
    lines = cells(text)
    assert lines[0][-2:] == ["top-1", "published"]
    assert {line[0]: line[-1] for line in lines[1:]} == {"RGB": "0.660", "flow": "0.650", "D3D": "needs data"}
    assert lines[1][4] == "0.750 [0.657, 0.825]"
    assert [line for line in text.splitlines() if "too few" in line] == [
        "- folder/test, seed 3: 100 clips (one clip is 0.01) are too few to tell these from the published networks: "
        "RGB +0.090."
    ]
    with pytest.raises(FileNotFoundError, match="no records at"):
        side_by_side.compare(tmp_path / "here", tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="published without logits"):
        side_by_side.compare(study)


def test_a_network_that_is_no_better_than_the_largest_class_is_named(tmp_path):
    """Of 30 clips 10 have the largest class: Wilson's interval of 16 of 30 is [0.361, 0.698], of 15 [0.332, 0.668]."""
    write_network(tmp_path, "rgb", first_right(16, 30))
    write_network(tmp_path, "flow", first_right(15, 30))
    write_network(tmp_path, "flow", first_right(15, 30), seed=4)
    write_network(tmp_path, "flow", first_right(0, 30), split="folder/val", seed=5)
    assert [line for line in side_by_side.compare(tmp_path).splitlines() if "largest" in line] == [
        "- folder/test: the largest class has 10 of the 30 clips (0.333). Not shown to be better than always naming "
        "it: flow (seed 3, 4)."
    ]


def test_what_the_test_clips_could_have_shown_is_computed_from_their_number(tmp_path):
    """D3D and RGB-longer differ on 10 of 100 clips in one seed and on 20 in the other."""
    for seed, right in ((3, 70), (4, 60)):
        write_network(tmp_path, "d3d", first_right(80), experiment="distill", seed=seed)
        write_network(tmp_path, "rgb_longer", first_right(right), experiment="distill", seed=seed)
    # (1.960 + 0.8416) * sqrt(.15 / 100), and .15 * (2.8016 / .02)²
    (line,) = [line for line in side_by_side.compare(tmp_path).splitlines() if "80 %" in line]
    assert line == (
        "- folder/test: only one of D3D and RGB-longer is right on 0.150 of the clips. With 100 clips a true "
        "difference of 0.109 in top-1 is found with a probability of 80 %; one of 0.02 would take 2,944 clips."
    )


def test_the_parts_of_the_gain_add_up(tmp_path):
    right = {"d3d": (80, 84), "flow_shuffled": (78, 80), "class_mean": (70, 74), "rgb_longer": (60, 60)}
    for arm, counts in right.items():
        for seed, count in enumerate(counts):
            write_network(tmp_path, arm, first_right(count), experiment="distill", seed=seed)
    write_network(tmp_path, "d3d", first_right(10), experiment="distill", seed=7)  # without its controls
    rows = cells(side_by_side.compare(tmp_path).partition("80 %")[2])
    assert [row[:3] for row in rows] == [
        ["part", "difference", "seeds"],
        ["whole gain", "D3D − RGB-longer", "2"],
        ["motion", "D3D − flow shuffled", "2"],
        ["spread", "flow shuffled − class mean", "2"],
        ["soft labels", "class mean − RGB-longer", "2"],
    ]
    # Two seeds: .03 ± 12.706 * .01.
    assert rows[2][3] == "+0.030 [−0.097, +0.157]"
    assert [float(row[3].split()[0]) for row in rows[1:]] == pytest.approx([0.22, 0.03, 0.07, 0.12])
    assert all(row[4].startswith(row[3].split()[0]) for row in rows[1:])
    low, high = map(float, rows[2][4].split(" ", 1)[1].strip("[]").replace("−", "-").split(", "))
    assert -0.02 < low < 0.01 < 0.05 < high < 0.09
