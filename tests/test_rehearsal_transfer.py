"""Transfer through the graph at toy size: sources trained on sprites, then fine-tuned on a tiny set of videos."""

import subprocess

import pandas as pd
import pytest
import yaml

from d3d.report.claims import read_claims
from d3d.report.ledger import judge, measure
from d3d.report.splits import by_split, over_splits
from d3d.study import records
from d3d.study.records import ROOT
from tests.test_graph import environment, snakemake
from tests.test_rehearsal_videos import film
from tests.video import official

pytestmark = pytest.mark.slow
TINY = {"frames": 6, "size": 24, "epochs": 1, "batch_size": 4, "width": 0.1, "seeds": [0]}
SPRITES = {"extends": "transfer-source400", "train_clips": 32, "test_clips": 16, "flow": "exact", "flow_cache": ""}
VIDEOS = {"short_side": 32, "fps": 25.0, "bound": 4.0, "workers": 1}
TUNED = ("rgb", "rgb_longer", "d3d_source", "d3d")


def make(folder, name, /, **profile):
    """Runs a study as `make study` does, and returns its exit status and output."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(TINY | profile))
    command = [*snakemake(f"profile={name}.yaml"), "--", "study"]
    done = subprocess.run(command, cwd=folder, env=environment(ROOT), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_networks_of_sprites_are_fine_tuned_on_videos_and_decide_no_row_of_the_paper(tmp_path):
    layout = official.ucf101(tmp_path / "set", film)
    for name in ("d3d", "notebooks", "Snakefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    target = VIDEOS | {"extends": "transfer", "students": {"epochs": 1}, "flow_cache": ""}
    target |= {name: str(value) for name, value in layout.items()}
    target["sources"] = {"k400": "results/small400", "k600": "results/small600"}
    target["arms"] = ["flow_s1", *(f"{name}_k400_s1" for name in TUNED), "d3d_k600_s1"]
    # Without its sources, a study of transfer says which network it lacks.
    code, output = make(tmp_path, "mine", **target)
    assert code != 0
    assert "results/small400/" in output
    assert not (tmp_path / "results/mine/train").exists()
    for name, arms in (("small400", ["rgb", "flow", "rgb_longer", "d3d"]), ("small600", ["rgb"])):
        code, output = make(tmp_path, name, **SPRITES, arms=arms)
        assert code == 0, output
    code, output = make(tmp_path, "mine", **target)
    assert code == 0, output

    results = tmp_path / "results/mine"
    starts = {r.arm: r.params["student"] for r in records.read_all(results, ["distill"])}
    assert starts == {
        "rgb_k400_s1": "results/small400/train/rgb-seed0.safetensors",
        "rgb_longer_k400_s1": "results/small400/distill/rgb_longer-seed0.safetensors",
        "d3d_source_k400_s1": "results/small400/distill/d3d-seed0.safetensors",
        "d3d_k400_s1": "results/small400/train/rgb-seed0.safetensors",
        "d3d_k600_s1": "results/small600/train/rgb-seed0.safetensors",
    }
    table = records.load(results)
    assert set(table["arm"]) == {"flow_s1", *starts, "d3d_d3d_s1", "two_stream_k400_s1"}
    (split,) = by_split(table).values()
    h5 = read_claims("book/claims_transfer.yaml").claims[0].conditions[0]
    as_target = over_splits([split]).replace({"ucf101/test/top1": "jhmdb/test/top1"})
    assert not measure(as_target, h5).missing
    # As if the copy were all of UCF101 and every network perfect: sprites are not Kinetics, and decide no row.
    whole = table.assign(stand_in=table["arm"].ne("flow_s1"))
    assert whole["stand_in"].equals(table["stand_in"] & table["arm"].ne("flow_s1"))
    everything = [whole.assign(arm=whole["arm"].str.replace("_s1", f"_s{k}"), value=0.999) for k in (1, 2, 3)]
    seeds = [rows.assign(seed=seed) for rows in everything for seed in range(3)]
    for verdict in judge(read_claims(), pd.concat(seeds)):
        if verdict.claim.id in ("B1", "B2", "B3"):
            assert verdict.word == "needs data"
