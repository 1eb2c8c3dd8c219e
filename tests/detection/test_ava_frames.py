"""AVA's key frames on disk: their clips, boxes and actions, and what is missing or damaged."""

import numpy as np
import pytest
import torch

from d3d.detection.ava_frames import ava_split
from d3d.detection.boxes import read_people
from d3d.study.parameters import DataConfig
from d3d.study.schema import make
from d3d.video.decode import VideoError
from tests.detection.films import FPS, TRAIN, VAL, rows, write_ava
from tests.video.official import write_lines


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("ava")
    return root, write_ava(root)


@pytest.fixture
def copy(tmp_path, shared):
    """A copy of the lists, which a test may spoil, beside links to the films."""
    root, _ = shared
    for path in (root / "AVA_v2.1").iterdir():
        write_lines(tmp_path / "AVA_v2.1" / path.name, path.read_text().splitlines())
    for path in (root / "AVA").rglob("*.mp4"):
        (tmp_path / "AVA").mkdir(exist_ok=True)
        (tmp_path / "AVA" / path.name).symlink_to(path)
    return tmp_path


def config(files, **changes):
    values = {"dataset": "ava", "frames": 4, "size": 16, "workers": 0, "fps": float(FPS)}
    return make(DataConfig, values | {k: files[k] for k in ("root", "annotations")} | changes)


def of(copy, **changes):
    return config({"root": str(copy / "AVA"), "annotations": str(copy / "AVA_v2.1")}, **changes)


def silent(line):
    pass


def test_a_clip_has_its_key_frame_in_the_middle(shared):
    split = ava_split(config(shared[1]), "train", report=silent)
    frames = split.key_frames
    assert frames.table[["video", "timestamp"]].values.tolist() == [[v, t] for v in sorted(TRAIN) for t in (2.0, 3.0)]
    first, second = frames.clips("rgb", [np.array([3, 0]), np.array([1])])
    assert first.rows.tolist() == [3, 0]
    assert first.clips.shape == (2, 3, 4, 16, 22)  # 4 : 3, whatever the film's shape
    # Frame t has the level 2 t, as far as H.264 keeps it; at 25 frames per second, second 3 is frame 75.
    levels = (first.clips[:, 0, :, -1, -1] * 255).numpy()
    assert np.allclose(levels, [[146, 148, 150, 152], [96, 98, 100, 102]], atol=2)
    assert np.allclose(second.clips[0, 0, 2, -1, -1] * 255, 150, atol=2)
    assert not first.mirrored.any()


def test_boxes_have_all_of_their_scored_actions(shared):
    split = ava_split(config(shared[1]), "train", report=silent)
    frames = split.key_frames
    assert frames.actions == (1, 3, 80)
    assert split.names[3] == "crouch/kneel"
    assert frames.scene_of_box.tolist() == [0, 0, 1, 2, 2, 3]
    boxes, labels = frames.boxes[:3].numpy(), frames.labels[:3].int().tolist()
    assert np.allclose(boxes, [[0.1, 0.2, 0.4, 0.9], [0.6, 0.1, 0.9, 0.8], [0.6, 0.1, 0.9, 0.8]])
    assert labels == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert (split.videos, split.listed, split.on_disk, split.missing) == (2, 4, 4, ())


def test_training_mirrors_some_clips(shared):
    frames = ava_split(config(shared[1]), "train", report=silent).key_frames
    rows = np.arange(4)
    (plain,) = frames.clips("rgb", [rows])
    seen = set()
    for step in range(6):
        (drawn,) = frames.clips("rgb", [rows], [(0, step)])
        for row, mirrored in zip(rows, drawn.mirrored.tolist(), strict=True):
            assert torch.equal(drawn.clips[row], plain.clips[row].flip(3) if mirrored else plain.clips[row])
            seen.add(mirrored)
        (again,) = frames.clips("rgb", [rows], [(0, step)])
        assert torch.equal(again.clips, drawn.clips)
    assert seen == {True, False}
    # The white corner tells left from right.
    assert plain.clips[0, 0, 0, 0, 0] > 0.9 > plain.clips[0, 0, 0, 0, -1]


def test_detected_persons_take_the_place_of_the_true_ones(shared):
    files = shared[1]
    split = ava_split(config(files), "val", boxes=files["boxes"], report=silent)
    own = split.people[split.people["video"] == VAL[0]]
    # A key frame without actors counts; an excluded one and one that nobody annotated do not.
    assert own["timestamp"].tolist() == [2, 2, 4]
    assert own["score"].tolist() == [0.9, 0.7, 0.2]
    assert own["y1"].tolist() == [0.2, 0, 0.2]  # clipped to the frame
    assert own["scene"].nunique() == 2
    true = ava_split(config(files), "val", report=silent).people
    assert "score" not in true
    assert true[true["video"] == VAL[0]]["timestamp"].tolist() == [2, 2, 3]


def test_missing_films_are_counted_and_damaged_ones_named(copy):
    missing, damaged = TRAIN
    (copy / "AVA" / f"{missing}.mp4").unlink()
    path = copy / "AVA" / f"{damaged}.mp4"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"no key frame of .*train_v2.1.csv can be read: .*{damaged}"):
        ava_split(of(copy), "train", report=silent)
    with pytest.raises(VideoError, match=damaged):
        ava_split(of(copy, damaged="raise"), "train", report=silent)
    (copy / "AVA" / f"{missing}.mp4").write_bytes(content)
    split = ava_split(of(copy), "train", report=silent)
    assert list(split.key_frames.refused) == [str(path)]
    assert (split.listed, split.on_disk, len(split.key_frames)) == (4, 4, 2)
    (copy / "AVA" / f"{VAL[0]}.mp4").unlink()
    split = ava_split(of(copy), "val", report=silent)
    assert (split.videos, split.listed, split.on_disk, split.missing) == (2, 4, 2, (VAL[0],))


def test_a_film_that_goes_bad_later_is_left_out(copy):
    split = ava_split(of(copy), "train", report=silent)
    path = copy / "AVA" / f"{TRAIN[0]}.mp4"
    path.unlink()
    path.write_bytes(b"no film any more")
    (batch,) = split.key_frames.clips("rgb", [np.arange(4)], [(0, 0)])
    assert batch.rows.tolist() == [2, 3]
    assert len(batch.clips) == len(batch.mirrored) == 2
    assert list(split.key_frames.refused) == [str(path)]
    (batch,) = split.key_frames.clips("rgb", [np.array([0])])
    assert not len(batch.rows)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ava_train_v2.1.csv", FileNotFoundError, "ava_train_v2.1.csv"),
        ("ava_train_excluded_timestamps_v2.1.csv", FileNotFoundError, "excluded timestamps"),
        ("ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt", FileNotFoundError, "must hold one ava_action_list"),
    ],
)
def test_a_missing_file_is_named(copy, name, error, message):
    (copy / "AVA_v2.1" / name).unlink()
    with pytest.raises(error, match=message):
        ava_split(of(copy), "train", report=silent)


def test_a_missing_folder_is_named(copy):
    with pytest.raises(FileNotFoundError, match=r"root 'nowhere' does not exist .* it must hold AVA's films"):
        ava_split(of(copy, root="nowhere"), "train")
    with pytest.raises(FileNotFoundError, match=r"annotations 'nowhere' does not exist"):
        ava_split(of(copy, annotations="nowhere"), "train")


def test_boxes_of_persons_are_read_with_their_highest_scores(tmp_path):
    path = tmp_path / "boxes.csv"
    write_lines(path, ["v,0902,0.1,0.2,0.3,0.4,,0.5", "v,902,0.1,0.2,0.3,0.4,12,0.7", "w,3,0,0,1,1", "w,3,0,0,1,0.5,1"])
    table = read_people(path)
    assert table.values.tolist() == [
        ["v", 902, 0.1, 0.2, 0.3, 0.4, 0.7],
        ["w", 3, 0, 0, 1, 1, 1],
        ["w", 3, 0, 0, 1, 0.5, 1],
    ]
    write_lines(path, [])
    assert read_people(path).empty


@pytest.mark.parametrize(
    "row",
    ["v,902,0.1,0.2,0.3", "v,902,0.1,0.2,0.3,nan", "v,902,0.5,0.2,0.3,0.4", "v,902,0.1,0.2,0.3,0.4,1,1.5",
     "v,x,0.1,0.2,0.3,0.4", ",902,0.1,0.2,0.3,0.4", "v,902,0.1,0.2,0.3,1.4,,0.5", "v,902,0.1,0.2,0.3,0.4,,0.5,9"],
)  # fmt: skip
def test_a_malformed_row_of_persons_is_named(tmp_path, row):
    path = tmp_path / "boxes.csv"
    write_lines(path, [rows("v")[0].removesuffix(",1"), row])
    with pytest.raises(ValueError, match=r"boxes.csv, line 2: .* expected video, timestamp, x1, y1, x2, y2, an action"):
        read_people(path)
