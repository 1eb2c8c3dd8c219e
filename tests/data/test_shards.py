"""Data sets written as shards: the same clips, flow and training to the bit; kills, parts, damage and other readers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import torch

from d3d.data import command
from d3d.data.load import load
from d3d.data.shard_writer import write_shards
from d3d.flow.cache import CacheError, FlowSpec
from d3d.flow.extract import extract
from d3d.study.schema import changed
from d3d.train import run as train
from d3d.train.networks import Teacher
from d3d.video.annotations import read
from d3d.video.decode import VideoError
from d3d.video.shard_sets import damaged_videos, read_shards
from d3d.video.shards import ShardError, read_index
from d3d.video.tables import write_table
from tests import configs
from tests.flow.test_extract import contents as flow_contents
from tests.flow.test_extract import moving_video

SPEC = FlowSpec(fps=25, short_side=24, bound=4)
SIZE = {"frames": 6, "size": 24, "short_side": 24, "bound": 4.0, "memory": "no"}
BAD = "wave/4.mp4"


def silent(line):
    pass


def make_videos(root):
    """Two classes of five videos, one of which is cut off."""
    for label, name in enumerate(("swim", "wave")):
        for i in range(5):
            moving_video(root / name / f"{i}.mp4", label + 1, frames=8 + i % 3)
    (root / BAD).write_bytes((root / BAD).read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Videos, their flow, and both as shards, which no test changes."""
    folder = tmp_path_factory.mktemp("sets")
    root = make_videos(folder / "videos")
    listing = read("folder", root)
    extract(listing.table["path"], root, folder / "flow", SPEC, report=silent)
    write_shards(listing, root, folder / "shards", flow_cache=folder / "flow", shard_bytes=20_000, report=silent)
    return folder


def config(made, dataset, **values):
    roots = {"folder": "videos", "shards": "shards"}
    flow = {"flow_cache": str(made / "flow")} if dataset == "folder" else {}
    return configs.training(**SIZE | {"dataset": dataset, "root": str(made / roots[dataset])} | flow | values)


def loaded(made, dataset, **values):
    return load(config(made, dataset, **values).data, seed=0, streams=("rgb", "flow"), workers=1, report=silent)


def batches(clips, seeds):
    rows = np.arange(len(clips))
    return list(replace(clips, workers=0).batches([(rows, entry) for entry in seeds], ("rgb", "flow")))


def assert_equal_clips(loose, shards):
    """Data sets have the same clips in the same order, in training views and in test views, to the bit."""
    assert loose.classes == shards.classes
    assert loose.counts == shards.counts
    assert loose.flow == shards.flow
    for a, b in zip(loose.splits.values(), shards.splits.values(), strict=True):
        own = ["path", "flow"]
        pd.testing.assert_frame_equal(a.table.drop(columns=own), b.table.drop(columns=own), check_like=True)
        for x, y in zip(batches(a, [(), (3, 1), (3, 2)]), batches(b, [(), (3, 1), (3, 2)]), strict=True):
            assert torch.equal(x.index, y.index)
            assert torch.equal(x.labels, y.labels)
            assert all(torch.equal(x.inputs[stream], y.inputs[stream]) for stream in ("rgb", "flow"))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_give_the_same_clips_as_loose_files(made):
    loose, shards = loaded(made, "folder"), loaded(made, "shards")
    assert len(list((made / "shards").glob("*.tar"))) == 3
    assert_equal_clips(loose, shards)
    (loose_path, loose_reason), (path, reason) = (*loose.refused.items(),)[0], (*shards.refused.items(),)[0]
    assert path.endswith(f".tar/{BAD}")
    assert loose_path.endswith(BAD)
    assert reason == loose_reason


def test_a_table_of_segments_keeps_its_order_splits_and_columns(made, tmp_path):
    """Several clips of one file, files in other folders than the table's, and columns of its own."""
    (tmp_path / "tables").mkdir()
    rows = [
        ("wave/0.mp4", "wave", 0, "train", 0.0, 0.2, "still"), ("swim/1.mp4", "swim", 1, "test", 0, np.nan, "moving"),
        ("swim/0.mp4", "swim", 1, "train", 0.1, np.nan, "still"),
        ("wave/0.mp4", "wave", 0, "train", 0.12, 0.3, "still"),
        ("wave/1.mp4", "wave", 0, "val", 0, np.nan, "moving"), ("wave/2.mp4", "wave", 0, "test", 0, np.nan, "still"),
    ]  # fmt: skip
    names = ["path", "class", "label", "split", "start", "end", "camera"]
    table = pd.DataFrame(rows, columns=names).assign(group="g", take=range(6))
    table["path"] = [os.path.relpath(made / "videos" / path, tmp_path / "tables") for path in table["path"]]
    table.to_csv(tmp_path / "tables" / "set.csv", index=False)
    listing = read("table", tmp_path / "tables" / "set.csv")
    write_shards(listing, tmp_path / "tables" / "set.csv", tmp_path / "shards", report=silent)
    assert [path.name for path in sorted((tmp_path / "shards").glob("*.tar"))] == [
        "test-000000.tar", "train-000000.tar", "val-000000.tar",
    ]  # fmt: skip
    stored = read_shards(tmp_path / "shards")
    columns = [name for name in listing.table if name != "path"]
    pd.testing.assert_frame_equal(stored.table[columns], listing.table[columns])
    assert [path.split(".tar/")[1] for path in stored.table["path"]] == [row[0] for row in rows]
    common = SIZE | {"frames": 3}
    flags = [{"dataset": "table", "root": str(tmp_path / "tables" / "set.csv")}]
    flags += [{"dataset": "shards", "root": str(tmp_path / "shards")}]
    loose, shards = (load(configs.data(**common, **each), seed=0, workers=1, report=silent) for each in flags)
    for a, b in zip(loose.splits.values(), shards.splits.values(), strict=True):
        assert a.table["take"].to_list() == b.table["take"].to_list()
        requests = [(np.arange(len(a)), (7,))]
        (x,), (y,) = (replace(clips, workers=0).batches(requests, ("rgb",)) for clips in (a, b))
        assert torch.equal(x.inputs["rgb"], y.inputs["rgb"])
        assert a.groups.tolist() == b.groups.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["yes", "no"])
def test_training_and_distillation_give_the_same_losses_and_weights(made, memory):
    """Two streams and D3D, from loose files and from shards."""
    tiny = {"memory": memory, "epochs": 2, "batch_size": 3, "width": 0.1, "workers": 1}
    results = {}
    for dataset in ("folder", "shards"):
        data = loaded(made, dataset, **tiny)
        histories, networks = [], {}
        for stream in ("rgb", "flow"):
            torch.manual_seed(0)
            run = changed(config(made, dataset, **tiny), stream=stream)
            networks[stream] = train.build_network(run, data)
            histories.append(train.fit(networks[stream], run, data, report=silent))
        torch.manual_seed(0)
        run = config(made, dataset, **tiny)
        networks["d3d"] = train.build_network(run, data)
        teacher = Teacher(networks["flow"].eval().requires_grad_(False), "flow", "logits")
        histories.append(train.fit(networks["d3d"], run, data, teacher=teacher, report=silent))
        weights = [parameter for network in networks.values() for parameter in network.state_dict().values()]
        results[dataset] = histories, weights
    (loose_history, loose_weights), (history, weights) = results.values()
    assert [row["loss"] for each in loose_history for row in each] == [row["loss"] for each in history for row in each]
    assert all(torch.equal(a, b) for a, b in zip(loose_weights, weights, strict=True))


@pytest.mark.slow
def test_flow_is_extracted_from_shards_without_unpacking(made, tmp_path):
    """The flow of shards is that of the files; packed beside them again, it gives the same shards as before."""
    write_shards(read("folder", made / "videos"), made / "videos", tmp_path / "plain", report=silent)
    listing = read("shards", tmp_path / "plain")
    extract(listing.table["path"], tmp_path / "plain", tmp_path / "flow", SPEC, report=silent)
    loose, from_shards = flow_contents(made / "flow"), flow_contents(tmp_path / "flow")
    assert {name.removeprefix("clips-000000.tar/"): content for name, content in from_shards.items()} == loose
    paths = {"root": str(tmp_path / "plain"), "flow_cache": str(tmp_path / "flow")}
    assert_equal_clips(loaded(made, "folder"), loaded(made, "shards", **paths))
    write_shards(listing, tmp_path / "plain", tmp_path / "full", flow_cache=tmp_path / "flow", report=silent)
    assert_equal_clips(loaded(made, "folder"), loaded(made, "shards", root=str(tmp_path / "full")))
    # From shards to shards of another size, the flow comes along.
    write_shards(read("shards", made / "shards"), made / "shards", tmp_path / "again", report=silent)
    assert_equal_clips(loaded(made, "folder"), loaded(made, "shards", root=str(tmp_path / "again")))


def test_flow_of_other_parameters_is_refused(made):
    with pytest.raises(CacheError, match=r"the flow in the shards .* was made with bound 4 instead of 5.0: use its"):
        loaded(made, "shards", bound=5.0)


def test_a_video_without_flow_costs_what_it_costs_as_a_loose_file(made, tmp_path):
    extract([made / "videos" / "wave" / f"{i}.mp4" for i in range(3)], made / "videos", tmp_path / "flow", SPEC,
            report=silent)  # fmt: skip
    extract([made / "videos" / "swim" / f"{i}.mp4" for i in (0, 3)], made / "videos", tmp_path / "flow", SPEC,
            report=silent)  # fmt: skip
    root = made / "videos"
    write_shards(read("folder", root), root, tmp_path / "shards", flow_cache=tmp_path / "flow", report=silent)
    loose = loaded(made, "folder", flow_cache=str(tmp_path / "flow"))
    shards = loaded(made, "shards", root=str(tmp_path / "shards"))
    assert_equal_clips(loose, shards)
    assert len(loose.refused) == len(shards.refused) == 5
    assert "swim/1.mp4 had no flow in its cache" in shards.refused.values()


def samples(shard):
    """The members of each sample, grouped as webdataset documents: by the name up to the first dot of its last part."""
    with tarfile.open(shard) as tar:
        members = [(member.name.split(".", 1), tar.extractfile(member).read(), member) for member in tar]
    assert all((m.mtime, m.uid, m.gid, m.uname, m.isfile()) == (0, 0, 0, "", True) for _, _, m in members)
    return {key: {name[1]: content for name, content, _ in group} for key, group in groupby(members, lambda m: m[0][0])}


def test_a_sample_has_the_members_that_webdataset_expects(made):
    all_samples = {}
    for shard in sorted((made / "shards").glob("*.tar")):
        assert not all_samples.keys() & samples(shard).keys()
        all_samples |= samples(shard)
    assert len(all_samples) == 9
    for sample in all_samples.values():
        assert list(sample) == ["json", "cls", "mp4", "flow.mkv"]
        described = json.loads(sample["json"])
        (clip,) = described["clips"]
        name = described["name"]
        assert sample["mp4"] == (made / "videos" / name).read_bytes()
        assert sample["flow.mkv"] == (made / "flow" / f"{name}.mkv").read_bytes()
        assert int(sample["cls"]) == clip["label"] == ["swim", "wave"].index(clip["class"])
        assert clip == {"class": name[:4], "label": clip["label"], "split": "", "start": 0.0, "end": None,
                        "group": name[5:]}  # fmt: skip
        assert (described["height"], described["width"], described["fps"]) == (48, 64, 25.0)


def test_webdataset_reads_the_shards(made):
    webdataset = pytest.importorskip("webdataset")
    paths = [str(path) for path in sorted((made / "shards").glob("*.tar"))]
    rows = list(webdataset.WebDataset(paths, shardshuffle=False).decode().to_tuple("mp4", "cls", "json", "flow.mkv"))
    assert len(rows) == 9
    for content, label, described, flow in rows:
        name = described["name"]
        assert content == (made / "videos" / name).read_bytes()
        assert flow == (made / "flow" / f"{name}.mkv").read_bytes()
        assert label == described["clips"][0]["label"]


def test_parts_write_together_what_one_run_writes(made, tmp_path):
    listing, root = read("folder", made / "videos"), made / "videos"
    options = {"flow_cache": made / "flow", "shard_bytes": 20_000, "report": silent}
    second = write_shards(listing, root, tmp_path / "parts", part=(2, 2), **options)
    assert (second["shards"], second["planned"]) == (1, 3)
    with pytest.raises(
        FileNotFoundError, match=r"clips-000000.tar and 3 more are missing: copy what is missing, or run"
    ):
        read_shards(tmp_path / "parts")
    total = write_shards(listing, root, tmp_path / "parts", part=(1, 2), **options)
    assert (total["shards"], total["videos"], total["refused"]) == (3, 9, 1)
    assert contents(tmp_path / "parts") == contents(made / "shards")


def test_shards_that_exist_are_left_and_a_deleted_one_is_written_anew(made, tmp_path):
    listing, root = read("folder", made / "videos"), made / "videos"
    options = {"flow_cache": made / "flow", "shard_bytes": 20_000}
    write_shards(listing, root, tmp_path / "shards", report=silent, **options)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    (tmp_path / "shards" / "clips-000001.tar").unlink()
    lines = []
    write_shards(listing, root, tmp_path / "shards", report=lines.append, **options)
    assert lines[0] == "3 shards, 2 of them already written"
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"clips-000001.tar", "clips-000001.jsonl"}
    assert contents(tmp_path / "shards") == contents(made / "shards")


def test_shards_of_something_else_are_not_written_to(made, tmp_path):
    listing, root = read("folder", made / "videos"), made / "videos"
    write_shards(listing, root, tmp_path / "shards", report=silent)
    before = contents(tmp_path / "shards")
    for options in ({"shard_bytes": 5000}, {"flow_cache": made / "flow"}):
        with pytest.raises(ShardError, match="holds shards of other videos, tables, flow or sizes: write to another"):
            write_shards(listing, root, tmp_path / "shards", report=silent, **options)
    fewer = replace(listing, table=listing.table[:-1], listed=9)
    with pytest.raises(ShardError, match="holds shards of other videos, tables, flow or sizes"):
        write_shards(fewer, root, tmp_path / "shards", report=silent)
    assert contents(tmp_path / "shards") == before


def test_an_unreadable_video_stops_the_writer_if_asked(made, tmp_path):
    with pytest.raises(VideoError, match=r"wave/4.mp4 cannot be opened as a video"):
        write_shards(read("folder", made / "videos"), made / "videos", tmp_path, damaged="raise", report=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_flow_that_is_not_what_was_written_is_not_packed(made, tmp_path):
    root = shutil.copytree(made / "videos", tmp_path / "videos")
    moving_video(root / "swim" / "1.mp4", 3)
    with pytest.raises(CacheError, match=r"swim/1.mp4 changed after its flow was computed: run `d3d flow` again"):
        write_shards(read("folder", root), root, tmp_path / "shards", flow_cache=made / "flow", report=silent)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["manifest.json"]


def test_a_shard_that_another_process_writes_is_skipped(made, tmp_path):
    import fcntl

    partial, lines = tmp_path / ".clips-000000.tar.part", []
    with open(partial, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        total = write_shards(read("folder", made / "videos"), made / "videos", tmp_path, report=lines.append)
    assert f"skipped, another process is writing it: {tmp_path}/clips-000000.tar" in lines
    assert total["shards"] == 0
    assert partial.is_file()


@pytest.mark.parametrize("what", ["video", "flow", "end"])
def test_a_damaged_shard_costs_its_damaged_clips_in_training(made, tmp_path, what):
    shutil.copytree(made / "shards", tmp_path / "shards")
    shard = tmp_path / "shards" / "clips-000000.tar"
    _, entries = read_index(shard)
    victim = entries[-1]
    stored = victim.flow if what == "flow" else victim.video
    if what == "end":
        os.truncate(shard, stored.offset + 10)
    else:
        with open(shard, "r+b") as file:
            file.seek(stored.offset + stored.size // 2)
            file.write(b"\xaa" * 9)
    whole, damaged = loaded(made, "shards"), loaded(made, "shards", root=str(tmp_path / "shards"))
    path = f"{shard}/{victim.name}"
    shown = {}
    for data in (whole, damaged):
        for clips in data.splits.values():
            (batch,) = batches(clips, [()])
            names = [clips.table["path"][int(i)].split(".tar/")[1] for i in batch.index]
            pairs = zip(names, batch.inputs["rgb"], batch.inputs["flow"], strict=True)
            shown.setdefault(id(data), {}).update({name: (rgb, flow) for name, rgb, flow in pairs})
    expected, remaining = shown.values()
    assert set(expected) - set(remaining) == {victim.name}
    assert all(torch.equal(a, b) for name in remaining for a, b in zip(expected[name], remaining[name], strict=True))
    reason = damaged.refused[path]
    assert "is damaged: " in reason
    assert ("is cut off after" if what == "end" else "are not what was written") in reason
    assert len(damaged.refused) == 2
    named = {path for path, why in damaged_videos(tmp_path / "shards") if why}
    assert {path.split(".tar/")[1] for path in named} == {victim.name, BAD}


def test_the_command_writes_checks_and_names_damage(made, tmp_path, capsys):
    shards = str(tmp_path / "shards")
    options = ["--flow-cache", str(made / "flow"), "--shard-gb", "0.00002", "--shards", shards]
    command.main(["--dataset", "folder", "--root", str(made / "videos"), *options])
    out = capsys.readouterr().out
    assert "10 listed, 10 found, 0 missing" in out
    assert "3 shards, 0 of them already written" in out
    assert f"all 3 shards: 9 videos, 9 clips, 1 unreadable videos, 0.1 MB -> {shards}" in out
    assert contents(tmp_path / "shards") == contents(made / "shards")
    with open(tmp_path / "shards" / "clips-000001.tar", "r+b") as file:
        file.seek(read_index(tmp_path / "shards" / "clips-000001.tar")[1][0].flow.offset)
        file.write(b"x")
    command.main(["--dataset", "shards", "--root", shards])
    out = capsys.readouterr().out
    assert "10 listed, 10 found, 0 missing, 2 unreadable" in out
    assert "unreadable: the flow of " in out
    assert "wave/4.mp4 cannot be opened as a video" in out
    assert "not split 8 clips; 2 classes" in out
    for wrong, message in [
        (["--shard", "3/2"], "shard must be i/n with i from 1 to n, such as 2/4, not '3/2'"),
        (["--shard-gb", "0"], r"shard_gb must lie in [0.000001, 1000], not 0.0"),
    ]:
        with pytest.raises(SystemExit, match=message.replace("[", r"\[").replace("]", r"\]")):
            command.main(["--dataset", "folder", "--root", str(made / "videos"), "--shards", shards, *wrong])
    with pytest.raises(SystemExit, match="--out lists loose files"):
        command.main(["--dataset", "shards", "--root", shards, "--out", str(tmp_path / "set.csv")])


def test_a_checked_table_is_packed_without_opening_its_videos(made, tmp_path, monkeypatch):
    from d3d.data import video_sets

    table, _ = video_sets.check_videos(read("folder", made / "videos").table, report=silent)
    write_table(tmp_path / "set.csv", replace(read("folder", made / "videos"), table=table))
    monkeypatch.setattr(video_sets, "check", None)
    listing = read("table", tmp_path / "set.csv")
    assert write_shards(listing, tmp_path / "set.csv", tmp_path / "shards", report=silent)["videos"] == 9
    data = load(configs.data(**SIZE, dataset="shards", root=str(tmp_path / "shards")), seed=0, workers=1, report=silent)
    assert len(data.splits["train"]) == 7


def shard_command(root, folder):
    words = ["--dataset", "folder", "--root", str(root), "--shards", str(folder), "--shard-gb", "0.000008"]
    return [sys.executable, "-m", "d3d", "data", *words]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a file is open", "an index is written", "three are done"])
def test_a_killed_run_resumes_and_gives_the_same_bytes(tmp_path, moment):
    root, folder = make_videos(tmp_path / "videos"), tmp_path / "shards"
    killed = subprocess.Popen(shard_command(root, folder), stdout=subprocess.PIPE, start_new_session=True)
    while killed.poll() is None:
        done = list(folder.glob("*.tar"))
        moments = {"a file is open": list(folder.glob(".*.part")), "an index is written": list(folder.glob("*.jsonl"))}
        if (moments | {"three are done": len(done) >= 3})[moment]:
            break
        time.sleep(0.0005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    resumed = subprocess.run(shard_command(root, folder), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    write_shards(read("folder", root), root, tmp_path / "complete", shard_bytes=8000, report=silent)
    assert contents(folder) == contents(tmp_path / "complete")
    assert before.items() <= contents(folder).items()
    assert len(list(folder.glob("*.tar"))) > 3


@pytest.mark.slow
def test_a_full_disk_leaves_only_complete_shards(tmp_path):
    """Simulated by a limit on the size of files, which some shards exceed."""
    import resource

    root, folder = make_videos(tmp_path / "videos"), tmp_path / "shards"
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))}
    done = subprocess.run(shard_command(root, folder), capture_output=True, text=True, check=False, **limit)
    assert done.returncode == 1
    assert "tar could not be written: File too large" in done.stderr
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("*.tar"))
    assert subprocess.run(shard_command(root, folder), capture_output=True, check=False).returncode == 0
    assert not [why for path, why in damaged_videos(folder) if why and not path.endswith(BAD)]
