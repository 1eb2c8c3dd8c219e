"""The command of row B7 of the paper's tables, as the ledger has it, on a tiny copy of AVA in its official layout."""

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from d3d.detection.boxes import read_detections
from d3d.detection.scoring import frame_map
from d3d.report.claims import read_claims
from d3d.report.ledger import judge, verdict_of
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import records
from d3d.study.records import ROOT
from tests.detection.films import VAL, write_ava

pytestmark = pytest.mark.slow
TINY = {"frames": 4, "size": 32, "scenes_per_step": 2, "detector_epochs": 2, "workers": 1}


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a claim's command in a folder that has the repository's notebooks, with sizes that a laptop can bear."""
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    tiny = shlex.join(word for name, value in TINY.items() for word in ("-p", name, str(value)))
    executable = shlex.quote(str(Path(sys.executable).with_name("papermill")))
    script = f'papermill() {{ {executable} "$@" {tiny} || exit 1; }}; {command}'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_of_b7_writes_records_that_decide_nothing_on_a_copy(tmp_path):
    write_ava(tmp_path)
    (tmp_path / "AVA" / "val" / f"{VAL[1]}.mp4").unlink()
    kinetics = tuple(map(str, range(400)))
    save_checkpoint(tmp_path / "D3D_K400.safetensors", s3dg(400, width=0.1), stream="rgb", classes=kinetics)
    ledger = read_claims(ROOT / "book/claims.yaml")
    claim = next(claim for claim in ledger.claims if claim.id == "B7")
    done = run(claim.command, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    written = records.read_all(tmp_path / "results/ava")
    assert [(r.experiment, r.arm, r.seed, r.stand_in) for r in written] == [
        ("detect", "d3d", s, True) for s in range(3)
    ]
    lists, first = tmp_path / "AVA_v2.1", written[0]
    detections = tmp_path / "results/ava/detect/d3d-seed0.csv"
    table = read_detections(detections)
    # Three boxes of the film that is there; not the one at a time that nobody annotated, nor the excluded one.
    assert set(table["video"]) == {VAL[0]}
    assert table.groupby("timestamp").size().to_dict() == {2.0: 6, 4.0: 3}
    scored = frame_map(
        lists / "ava_val_v2.1.csv", detections, classes=next(lists.glob("*.pbtxt.txt")),
        excluded=lists / "ava_val_excluded_timestamps_v2.1.csv",
    )  # fmt: skip
    assert first.metrics["ava/frame_map"] == scored.mean <= 0.5
    counts = {"listed": 8, "found": 6, "missing": 2, "decoded": 6}
    assert first.files == counts | {"refused": {}, "missing_first": [VAL[1]]}
    assert not list((tmp_path / "results/ava/detect").glob("*.state"))

    # However high its scores are: the mark alone keeps such a record from deciding.
    perfect = [replace(r, metrics={"ava/frame_map": 0.9 + r.seed / 100}) for r in written]
    for stand_in, word in ((True, "needs data"), (False, "supported")):
        for record in perfect:
            records.write(tmp_path / word, replace(record, stand_in=stand_in))
        assert verdict_of(judge(ledger, records.load(tmp_path / word)), "B7").word == word
