"""Gains by kind of class, by camera and by class: on predictions made by hand, and the figure."""

import numpy as np
import pytest

from d3d.report import kinds
from d3d.report.clips import ClipScores
from d3d.report.splits import over_splits
from d3d.study import archive, records
from d3d.video.annotations import read
from tests.conftest import shared_folder
from tests.study.test_records import record

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
# Four clips of each class in each split, of two films; each network is right on so many clips of a film of a class.
RIGHT = {
    "rgb": {"sit": (0, 0), "golf": (1, 1), "wave": (0, 1)},
    "rgb_longer": {"sit": (0, 0), "golf": (1, 2), "wave": (1, 1)},
    "flow_shuffled": {"sit": (1, 1), "golf": (1, 2), "wave": (1, 1)},
    "d3d": {"sit": (1, 2), "golf": (1, 2), "wave": (1, 1)},
    "flow": {"sit": (2, 2), "golf": (2, 1), "wave": (1, 1)},
}
SPLITS = ("split1", "split2")


def write_split(folder, name, *, right=RIGHT, with_films=True, seeds=3):
    """The archive of a split; the network of seed 2 is wrong on one more clip of a film, the first of class wave."""
    films = np.array([f"{c}|{name} film {k}" for c in RIGHT["rgb"] for k in (0, 0, 1, 1)])
    labels = np.array(kinds.labels_of([film.split("|")[0] for film in films]))
    for arm, of_class in right.items():
        for seed in range(seeds):
            correct = np.concatenate([np.arange(2) < n for c in RIGHT["rgb"] for n in of_class[c]])
            if seed == 2:
                correct[8] = False
            logits = np.eye(len(kinds.CLASSES))[np.where(correct, labels, (labels + 1) % len(kinds.CLASSES))]
            cameras = np.where(np.arange(len(labels)) % 2, "moving", "still")
            arrays = {"logits": logits, "labels": labels, "groups": cameras, "sources": films}
            arrays = {f"{kind}/jhmdb/test": x for kind, x in arrays.items() if with_films or kind != "sources"}
            metrics = {kinds.TOP1: float(correct.mean())}
            metrics |= {m: float(correct[cameras == m.split("/")[2]].mean()) for m in kinds.CAMERAS.values()}
            experiment = "train" if arm in ("rgb", "flow") else "distill"
            records.write(folder / name, record(experiment=experiment, arm=arm, seed=seed, metrics=metrics), arrays)
    return archive.pack(folder / name)


def study(folder, **options):
    parts = [write_split(folder, name, **options) for name in SPLITS]
    path = archive.merge(parts, folder / "study", as_cells=True)
    return ClipScores(path, SPLITS), over_splits(records.load_cells(path).values())


def test_a_gain_is_measured_by_kind_of_class_and_by_camera(tmp_path):
    measured = kinds.gains(*study(tmp_path)).set_index(["contrast", "group"])
    gain = measured.loc["d3d - rgb_longer"]
    # Of four clips of sit, D3D is right on three more; of golf and wave on as many.
    assert gain.loc[kinds.MOTION, "values"] == pytest.approx((0.75,) * 3)
    assert gain.loc[kinds.FRAME, "values"] == gain.loc[kinds.OTHER, "values"] == pytest.approx((0,) * 3)
    assert gain.loc[kinds.BETWEEN, "values"] == pytest.approx((0.75,) * 3)
    assert gain.loc[kinds.ALL, "mean"] == pytest.approx(3 / 12)
    # One film has one clip more that is right, the other two; a film is drawn with both of its clips.
    assert gain.loc[kinds.MOTION, ["clips_low", "clips_high"]].tolist() == pytest.approx([0.5, 1.0])
    assert gain.loc[kinds.BETWEEN, ["clips_low", "clips_high"]].tolist() == pytest.approx([0.5, 1.0])
    # The even clips are still: of sit one per film, and the third one moves.
    assert gain.loc["camera still", "mean"] == pytest.approx(2 / 6)
    assert gain.loc["camera moves", "mean"] == pytest.approx(1 / 6)
    assert gain["films"].all()
    # A seed's own clips count: RGB of seed 2 is not right on one clip less, as it was wrong on it anyway.
    assert measured.loc[("flow - rgb", kinds.OTHER), "values"] == pytest.approx((0.25, 0.25, 0.0))
    assert measured.loc[("d3d - flow_shuffled", kinds.MOTION), "mean"] == pytest.approx(0.25)


def test_what_has_no_records_is_left_out(tmp_path):
    clips, table = study(tmp_path, right={arm: RIGHT[arm] for arm in ("rgb", "flow", "d3d")})
    assert set(kinds.gains(clips, table)["contrast"]) == {"flow - rgb"}
    without_camera = table[table["metric"] == kinds.TOP1]
    assert set(kinds.gains(clips, without_camera)["group"]) == {kinds.ALL, kinds.BETWEEN, *kinds.KINDS}
    by_class = kinds.class_table(clips)
    assert by_class["class"].tolist() == ["sit", "golf", "wave"]
    assert by_class["D3D − RGB-longer"].tolist() == ["needs data"] * 3


def test_classes_are_tabulated_by_kind(tmp_path):
    row = kinds.class_table(study(tmp_path)[0]).set_index("class").loc["sit"]
    assert row["kind"] == "motion decides"
    assert (row["clips"], row["films"]) == (8, 4)
    assert row["D3D − RGB-longer"] == "+0.750 [+0.500, +1.000]"


def test_clips_of_unknown_films_count_as_films_of_their_own_and_the_figure_says_so(tmp_path):
    clips, table = study(tmp_path, with_films=False)
    measured = kinds.gains(clips, table)
    assert not measured["films"].any()
    # Clip 0 of one split is not clip 0 of the other.
    (first, of_first), (second, of_second) = clips.differences("d3d - rgb", kinds.TOP1)
    assert first.shape == second.shape == (3, 12)
    assert not set(of_first) & set(of_second)
    assert kinds.class_table(clips)["films"].tolist() == ["—"] * 3
    assert "clips (films not recorded)" in kinds.draw(measured).axes[-1].get_xlabel()


def test_every_class_is_of_one_kind():
    assert sorted(name for names in kinds.KINDS.values() for name in names) == sorted(kinds.CLASSES)
    assert len(set(kinds.CLASSES)) == 21
    assert kinds.KINDS[kinds.OTHER][:2] == ("clap", "kick_ball")


def test_the_classes_are_those_of_the_data_set():
    folder = shared_folder("jhmdb")
    listing = read("jhmdb", folder / "videos", annotations=folder / "splits", split=1)
    assert tuple(listing.classes) == kinds.CLASSES


@figure
def test_kinds(tmp_path):
    return kinds.draw(kinds.gains(*study(tmp_path)))
