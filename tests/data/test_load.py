"""Loaded data sets: the contents of each split, cached TV-L1, damaged files and error messages."""

import numpy as np
import pytest
import torch

from d3d.data import sprites
from d3d.data.load import load
from d3d.data.sprite_classes import CLASSES
from d3d.data.sprite_clips import sprite_clips
from d3d.flow.estimate import tvl1_clip
from d3d.study.schema import changed
from tests import configs
from tests.video.test_decode import noise_video

SMALL = {"frames": 4, "size": 16, "train_clips": 24, "test_clips": 16}


@pytest.fixture
def folder(tmp_path):
    """Two classes of five readable videos in three codecs; a cut file, a text, a hidden file and a broken link."""
    root = tmp_path / "clips"
    for name in ("juggle", "wave"):
        (root / name).mkdir(parents=True)
        for i, (codec, suffix) in enumerate([("mpeg4", "avi"), ("libx264", "mp4"), ("libvpx-vp9", "webm")] * 2):
            if i < 5:
                noise_video(root / name / f"{i}.{suffix}", codec)
    cut = noise_video(root / "wave" / "cut.avi", "mpeg4")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (root / "wave" / "notes.txt").write_text("not a video")
    (root / "wave" / ".hidden").write_text("")
    (root / "juggle" / "gone.mp4").symlink_to(root / "nowhere.mp4")
    return root


def test_sprites_are_loaded_as_rendered():
    data = load(configs.data(**SMALL, flow="exact"), seed=3, streams=("rgb", "flow"))
    assert set(data.splits) == {"train", "val", "iid", "decorrelated", "shuffled", "reversed", "frozen"}
    assert set(data.test_splits) == set(data.splits) - {"train"}
    assert data.classes[data.siblings[data.classes.index("right")]] == "left"
    clips = data.splits["train"]
    rendered = sprites.render(configs.data(**SMALL).clip, "train/3", range(24))
    assert torch.equal(clips.flow, rendered.flow.half())
    assert (clips.inputs("rgb", slice(None)) - rendered.rgb).abs().max() <= 0.5 / 255 + 1e-6
    assert clips.labels.tolist() == [i % len(CLASSES) for i in range(24)]


def test_the_seed_changes_training_clips_and_no_test_clip():
    a, b = (load(configs.data(**SMALL), seed=s) for s in (0, 1))
    assert not torch.equal(a.splits["train"].rgb, b.splits["train"].rgb)
    for split in a.test_splits:
        assert torch.equal(a.splits[split].rgb, b.splits[split].rgb)


def test_the_temporal_stream_sees_tvl1_of_the_8_bit_frames():
    config = configs.data(**SMALL | {"size": 32}, noise=0.0)
    clips = load(config, seed=3, streams=("flow",)).splits["train"]
    frames = (clips.rgb.float() / 255)[:2]
    assert torch.equal(clips.flow[:2], tvl1_clip(frames).half())
    # It is an estimate, close to the exact flow but not equal.
    truth = sprites.render(config.clip, "train/3", range(24)).flow
    error = (clips.flow - truth).norm(dim=1).mean()
    assert 0.01 < error < 0.7 * truth.norm(dim=1).mean()


def test_tvl1_is_computed_once_and_cached(tmp_path, monkeypatch):
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    uncached = sprite_clips(changed(config, flow_cache=""), "iid", 16, flow=True)
    first = sprite_clips(config, "iid", 16, flow=True)
    monkeypatch.setattr("d3d.flow.estimate.tvl1_clip", None)  # must not be called again
    second = sprite_clips(config, "iid", 16, flow=True)
    assert torch.equal(first.flow, uncached.flow)
    assert torch.equal(second.flow, uncached.flow)
    (path,) = (tmp_path / "flow").glob("*.npy")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path} is incomplete, changed or the flow of other clips: delete it"):
        sprite_clips(config, "iid", 16, flow=True)


@pytest.mark.parametrize("change", ["cut", "a bit", "of other clips", "empty"])
def test_cached_flow_that_is_not_what_was_written_is_named(tmp_path, change):
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    sprite_clips(config, "iid", 16, flow=True)
    (path,) = (tmp_path / "flow").glob("*.npy")
    content = path.read_bytes()
    if change == "of other clips":
        sprite_clips(config, "val", 16, flow=True)
        (other,) = set((tmp_path / "flow").glob("*.npy")) - {path}
        path.write_bytes(other.read_bytes())
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-4096], "a bit": flipped, "empty": b""}[change])
    with pytest.raises(ValueError, match=f"{path} is incomplete, changed or the flow of other clips: delete it"):
        sprite_clips(config, "iid", 16, flow=True)
    path.unlink()
    sprite_clips(config, "iid", 16, flow=True)
    assert path.read_bytes() == content


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    sprite_clips(config, "iid", 16, flow=True)
    (lock,) = (tmp_path / "flow").glob("*.lock")
    lock.unlink()
    lock.symlink_to(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match=r"\.lock is a link or not a regular file: delete it"):
        sprite_clips(config, "iid", 16, flow=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_cached_flow_of_other_code_is_deleted(tmp_path, monkeypatch):
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    noisier = changed(config, noise=0.2)
    for each in (config, noisier):
        sprite_clips(each, "iid", 16, flow=True)
    old = next((tmp_path / "flow").glob("*.npy"))
    old.with_name(f".{old.name}.123").write_bytes(b"of a process killed while it wrote")
    monkeypatch.setattr("d3d.data.sprite_clips.TVL1_MODULES", ("d3d.flow.estimate",))
    for each in (config, noisier):
        sprite_clips(each, "iid", 16, flow=True)
    names = sorted(path.name for path in (tmp_path / "flow").iterdir())
    assert len([name for name in names if name.endswith(".npy")]) == 2
    assert old.name not in names
    assert not [name for name in names if name.endswith(".123")]


def test_a_full_disk_stops_no_run(tmp_path, monkeypatch, capsys):
    def fail(contents):
        raise OSError(28, "no space left")

    monkeypatch.setattr("d3d.data.sprite_clips.write_atomic", fail)
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    assert sprite_clips(config, "iid", 16, flow=True).flow is not None
    assert "flow is not cached: no space left" in capsys.readouterr().out


def test_the_cache_key_covers_all_that_changes_the_frames(tmp_path):
    config = configs.data(**SMALL, flow_cache=str(tmp_path / "flow"))
    for overrides in ({}, {"noise": 0.2}, {"rho": 0.1}):
        sprite_clips(changed(config, **overrides), "iid", 16, flow=True)
    sprite_clips(config, "iid", 16, playback="backwards", flow=True)
    sprite_clips(config, "val", 16, flow=True)
    assert len(list((tmp_path / "flow").glob("*.npy"))) == 5
    # The bound only scales the flow for the network.
    sprite_clips(changed(config, bound=1.0), "val", 16, flow=True)
    assert len(list((tmp_path / "flow").glob("*.npy"))) == 5


def test_stress_splits_are_the_clips_of_iid_played_differently():
    config = configs.data(**SMALL | {"frames": 6, "test_clips": 64}, noise=0.0, flow="exact")
    data = load(config, seed=0, streams=("rgb", "flow"))
    iid, frozen, shuffled, backwards = (data.splits[name] for name in ("iid", "frozen", "shuffled", "reversed"))
    assert (frozen.rgb == frozen.rgb[:, :, :1]).all()
    assert (frozen.flow == 0).all()
    frames = [{f.tobytes() for f in clips.rgb[0].transpose(0, 1).numpy()} for clips in (iid, shuffled)]
    assert frames[0] == frames[1]
    assert not torch.equal(iid.rgb, shuffled.rgb)
    # Appearance classes have no reversed counterpart.
    assert len(backwards) == 48
    assert set(backwards.groups) == {"motion", "both"}
    has_reverse = iid.table["group"].to_numpy() != "appearance"
    assert torch.equal(backwards.rgb, iid.rgb[torch.from_numpy(has_reverse)].flip(2))
    names = dict(zip(iid.table["class"][has_reverse], backwards.table["class"], strict=True))
    assert names["right"] == "left"
    assert names["counterorbit"] == "orbit"
    assert names["sway"] == "sway"
    assert [CLASSES[i].name for i in backwards.labels.tolist()] == backwards.table["class"].tolist()
    velocities = ["velocity_x", "angular_velocity"]
    assert np.allclose(backwards.table[velocities] + iid.table.loc[has_reverse, velocities].to_numpy(), 0)


def test_streams_of_the_teacher_are_loaded_for_training_only():
    data = load(configs.data(**SMALL, flow="exact"), seed=3, teacher=("flow",))
    assert data.splits["train"].flow is not None
    assert all(clips.flow is None for clips in data.test_splits.values())


def test_flow_is_clipped_and_scaled():
    clips = load(configs.data(**SMALL, amplitude=6.0, bound=2.0, flow="exact"), seed=0, streams=("flow",)).splits["iid"]
    inputs = clips.inputs("flow", slice(None))
    assert inputs.abs().max() == 1
    below = clips.flow.abs() < 2
    assert torch.equal(inputs[below], clips.flow[below].float() / 2)


def test_a_folder_of_class_folders(folder):
    config = configs.data(dataset="folder", root=str(folder), frames=8, size=32)
    data = load(config, seed=0)
    assert data.classes == ("juggle", "wave")
    assert data.files["found"] == 13
    assert data.files["decoded"] == 10
    assert sorted(name.split("/")[-1] for name in data.refused) == ["cut.avi", "gone.mp4", "notes.txt"]
    assert "is truncated" in next(v for k, v in data.refused.items() if k.endswith("cut.avi"))
    train, test = data.splits["train"], data.splits["folder/test"]
    assert sorted(train.labels.tolist()) == [0] * 4 + [1] * 4
    assert sorted(test.labels.tolist()) == [0, 1]
    (batch,) = train.batches([(np.arange(8), ())], ("rgb",))
    assert batch.inputs["rgb"].shape == (8, 3, 8, 32, 32)
    assert not set(train.table["path"]) & set(test.table["path"])
    other_seed = load(config, seed=9).splits["folder/test"]
    assert set(other_seed.table["path"]) == set(test.table["path"])


@pytest.mark.parametrize("readable", [1, 2])
def test_a_damaged_file_never_empties_a_split(folder, readable):
    for name in ("juggle", "wave"):
        for path in sorted((folder / name).glob("[0-9].*"))[readable:]:
            path.unlink()
    config = configs.data(dataset="folder", root=str(folder), frames=4, size=32)
    if readable == 1:
        with pytest.raises(ValueError, match="too few videos to hold any out"):
            load(config, seed=0)
    else:
        assert np.bincount(load(config, seed=0).splits["folder/test"].labels).tolist() == [1, 1]


def test_the_error_names_what_a_folder_lacks(tmp_path, folder):
    def config(root):
        return configs.data(dataset="folder", root=str(root), frames=4, size=32)

    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        load(config(tmp_path / "absent"), seed=0)
    (tmp_path / "empty" / "wave").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no video"):
        load(config(tmp_path / "empty"), seed=0)
    only_text = tmp_path / "text"
    for name in ("a", "b"):
        (only_text / name).mkdir(parents=True)
        (only_text / name / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no video that can be read; the first: .*notes.txt cannot be opened"):
        load(config(only_text), seed=0)
    (folder / "wave" / "more").mkdir()
    with pytest.raises(ValueError, match=r"more' is a folder: a class folder holds its video files directly"):
        load(config(folder), seed=0)
    (folder / "wave" / "more").rmdir()
    for path in (folder / "juggle").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"class 'juggle' .* holds no file"):
        load(config(folder), seed=0)
    (folder / "juggle").rmdir()
    with pytest.raises(ValueError, match="holds one class only"):
        load(config(folder), seed=0)
    (folder / "juggle").mkdir()
    (folder / "juggle" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"class .juggle. .* has no video that can be read"):
        load(config(folder), seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "kinetics"}, "dataset must be one of sprites, folder, ucf101, .*, not 'kinetics'"),
        ({"dataset": "folder"}, "dataset 'folder' needs root"),
        ({"root": "clips"}, "root is only for video files, not for dataset 'sprites'"),
        ({"dataset": "folder", "root": "x", "flow": "exact"}, "flow 'exact' exists for sprites only"),
        ({"dataset": "folder", "root": "x", "fps": 0.0}, "fps must be positive, it is 0.0"),
        (
            {"dataset": "folder", "root": "x", "short_side": 20},
            r"short_side must be 0 \(size\) or at least size \(64\)",
        ),
        ({"dataset": "folder", "root": "x", "view_crops": 0}, "view_crops must be at least 1, not 0"),
        ({"dataset": "folder", "root": "x", "damaged": "hide"}, "damaged must be one of skip, raise, not 'hide'"),
        ({"rho": 2.0}, r"rho must lie in \[0, 1\], not 2.0"),
        ({"bound": 0.0}, "bound must be positive, it is 0.0"),
        ({"flow": "raft"}, "flow must be one of tvl1, exact, not 'raft'"),
        ({"test_clips": 3}, "test_clips must be at least 16, not 3"),
    ],
)
def test_the_error_names_the_value_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        configs.data(**values)


def test_real_clips(real_clips, tmp_path):
    for name, pattern in [("wave", "*_wave_*.avi"), ("juggle", "v_Soccer*.avi")]:
        (tmp_path / name).mkdir()
        for path in real_clips.glob(pattern):
            (tmp_path / name / path.name).symlink_to(path)
    source = next(real_clips.glob("v_Soccer*.avi"))
    (tmp_path / "juggle" / "half.avi").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    data = load(configs.data(dataset="folder", root=str(tmp_path), frames=8, size=32), seed=0)
    assert (data.files["found"], data.files["decoded"]) == (6, 5)
    assert [name.split("/")[-1] for name in data.refused] == ["half.avi"]
