"""The command `d3d detection score`: what it prints, and how it refuses bad input."""

import subprocess
import sys

import pytest

from d3d.detection.command import main
from d3d.study.records import ROOT
from tests.video.official import write_lines


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_lines(tmp_path / "truth.csv", ["v,0902,0,0,1,1,1,0", "v,0903,0,0,1,1,80,0", "v,0904", "v,0905,0,0,1,1,80,0"])
    write_lines(tmp_path / "detections.csv", ["v,902,0,0,1,1,1,0.5", "v,904,0,0,1,1,1,0.9"])
    write_lines(tmp_path / "excluded.csv", ["v,0905"])
    entries = [("watch (a person)", 80), ("bend/bow (at the waist)", 1), ("swim", 71)]
    write_lines(tmp_path / "actions.pbtxt", [f'label {{\n  name: "{n}"\n  label_id: {i}\n}}' for n, i in entries])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_mean_and_a_row_per_class(folder, capsys):
    main(["score", "truth.csv", "detections.csv", "--label-map", "actions.pbtxt", "--excluded", "excluded.csv"])
    assert capsys.readouterr().out.splitlines() == [
        "frame mAP at IoU 0.5: 0.2500, over 2 of 3 classes in 3 key frames",
        "",
        "class     boxes  detections      AP",
        "    1         1           2  0.5000  bend/bow (at the waist)",
        "   71         0           0     nan  swim",
        "   80         1           0  0.0000  watch (a person)",
    ]


def test_classes_are_those_of_the_ground_truth_by_default(folder, capsys):
    main(["score", "truth.csv", "detections.csv", "--iou", "0.75"])
    assert capsys.readouterr().out.splitlines() == [
        "frame mAP at IoU 0.75: 0.2500, over 2 of 2 classes in 4 key frames",
        "",
        "class     boxes  detections      AP",
        "    1         1           2  0.5000",
        "   80         2           0  0.0000",
    ]


def test_the_room_runs_as_a_module(folder):
    arguments = ["-m", "d3d.detection", "score", *(str(folder / name) for name in ("truth.csv", "detections.csv"))]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("frame mAP at IoU 0.5: 0.2500")
