"""The parameters of the experiment `detect`, declared as those in d3d/study/parameters.py."""

from dataclasses import dataclass

from d3d.messages import shown
from d3d.study.parameters import MAX_CLIPS, DataConfig, NetworkConfig, RunConfig
from d3d.study.schema import Group, parameter

RUN, NETWORK, DATA = RunConfig(), NetworkConfig(), DataConfig()


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(Group):
    """Training and test of action detectors, with equal effort, and of the person detector that finds their boxes."""

    weights: str = parameter("", "ava: checkpoint of the RGB network that the detector starts from, such as D3D's")
    boxes: str = parameter(
        "", "ava: CSV file of detected persons on val, video,timestamp,x1,y1,x2,y2,,score; empty: the true boxes"
    )
    train_scenes: int = parameter(256, "sprites: number of training scenes, at least 2", low=2, limit=MAX_CLIPS)
    test_scenes: int = parameter(128, "sprites: number of test scenes, at least 2", low=2, limit=MAX_CLIPS)
    scenes_per_step: int = parameter(
        8, "key frames per training step, at least 2 because of batch norm", low=2, limit=MAX_CLIPS
    )
    detector_epochs: int = parameter(
        10, "passes over the training key frames for each action detector", low=1, limit=10**6
    )
    detector_rate: float = parameter(0.05, "peak learning rate of the action detectors", above=0, limit=1e30)
    person_epochs: int = parameter(
        6, "sprites: passes over the training scenes for the person detector", low=1, limit=10**6
    )
    person_rate: float = parameter(0.02, "sprites: peak learning rate of the person detector", above=0, limit=1e30)
    drawn_scenes: int = parameter(
        12, "sprites: number of test scenes, from the first, whose detections are saved", low=0, limit=10_000
    )


@dataclass(frozen=True, kw_only=True)
class DetectConfig(Group):
    """Action detectors: trained networks fine-tuned to score the actions of actors in boxes."""

    run: RunConfig = RUN
    network: NetworkConfig = NETWORK
    data: DataConfig = DATA
    detection: DetectionConfig = DetectionConfig()

    def check(self) -> None:
        own, dataset = self.detection, self.data.files.dataset
        if dataset not in ("sprites", "ava"):
            raise ValueError(f"dataset must be sprites or ava, which have boxes of actions, not {shown(dataset)}")
        if dataset == "ava" and not own.weights:
            raise ValueError("dataset 'ava' needs weights: the checkpoint of the network that the detector starts from")
        for name in ("weights", "boxes"):
            if dataset == "sprites" and getattr(own, name):
                raise ValueError(f"{name} is only for dataset 'ava', not for dataset 'sprites'")
        if dataset == "sprites" and self.run.arm:
            raise ValueError("arm is only for dataset 'ava': on sprites all arms of the results folder are examined")
        if own.drawn_scenes > own.test_scenes:
            raise ValueError(
                f"drawn_scenes must lie between 0 and test_scenes ({own.test_scenes}), not {own.drawn_scenes}"
            )
