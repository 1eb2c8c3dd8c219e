"""The experiment `detect`: action detectors of trained networks, on scenes of several sprites or on AVA v2.1."""

from d3d.detection import ava_study, scene_study
from d3d.study.run import Run


def run(active_run: Run) -> None:
    """Trains and tests detectors, and writes their records; which and how many depends on the run's data set."""
    study = ava_study if active_run.config.data.files.dataset == "ava" else scene_study
    study.run(active_run)
