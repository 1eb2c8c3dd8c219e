"""Parameters that no run can have: flags of `d3d train`, a file of `--config` and notebooks refuse them alike."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from d3d.study import launch, machine
from d3d.study.experiments import EXPERIMENTS, defaults, field_of, from_namespace, make_config
from d3d.study.run import start
from tests.bad_inputs.harness import BadInput, assert_refused

HUGE = 10**400


class Wrong(NamedTuple):
    """Parameters of `train` or `distill`, and a regular expression that the whole sentence matches."""

    params: dict[str, Any]
    message: str
    experiment: str = "train"


def too_large(name: str, value: Any, limit: Any, as_shown: str = "") -> Wrong:
    return Wrong({name: value}, f"{name} must be at most {limit}, not {re.escape(as_shown or repr(value))}")


VIDEOS = {"dataset": "folder", "root": "videos"}
DISTILL = {"teacher": "a.safetensors"}
# Values out of any use's range, too large for any machine, or not finite.
OUT_OF_RANGE = {
    "train_clips": too_large("train_clips", 10**12, 10**8),
    "test_clips": too_large("test_clips", 10**12, 10**8),
    "frames": too_large("frames", 10**9, 10_000),
    "size": too_large("size", 10**6, 10_000),
    "batch_size": too_large("batch_size", 10**9, 10**8),
    "width": too_large("width", 1e6, 8),
    "a tiny width": Wrong({"width": 1e-9}, "width must be at least 0.001, not 1e-09"),
    "epochs": too_large("epochs", 10**12, 10**6),
    "accumulate": too_large("accumulate", 10**9, 5 * 10**7),
    "accumulate for the batch": Wrong({"accumulate": 17}, r"accumulate must lie between 1 and half of batch_size .*17"),
    "workers": too_large("workers", 10**6, 1024),
    "processes": too_large("processes", 10**6, 1024),
    "view_clips": too_large("view_clips", 10**9, 1000),
    "view_crops": too_large("view_crops", 10**9, 1000),
    "short_side": too_large("short_side", 10**9, 10_000),
    "fps": too_large("fps", 1e308, 1000, "1e+308"),
    "a tiny fps": Wrong({"fps": 1e-300}, "fps must be at least 0.001, not 1e-300"),
    "amplitude": too_large("amplitude", 1e300, 1000, "1e+300"),
    "camera": too_large("camera", 1e300, 1000, "1e+300"),
    "noise": too_large("noise", 1e300, 100, "1e+300"),
    "bound": too_large("bound", 1e300, 10_000, "1e+300"),
    "a tiny bound": Wrong({"bound": 1e-300}, "bound must be at least 0.0001, not 1e-300"),
    "learning_rate": Wrong({"learning_rate": 1e300}, r"learning_rate must be at most 1e\+30, not 1e\+300"),
    "weight_decay": too_large("weight_decay", 1e300, 10_000, "1e+300"),
    "save_every": too_large("save_every", 1e300, 10**9, "1e+300"),
    "lambda_": Wrong(DISTILL | {"lambda_": 1e300}, r"lambda_ must be at most 1000000, not 1e\+300", "distill"),
    "temperature": Wrong(DISTILL | {"temperature": 1e300}, "temperature must be at most 1000000, not .*", "distill"),
    "a tiny temperature": Wrong(DISTILL | {"temperature": 1e-9}, "temperature must be at least 0.0001, .*", "distill"),
    "a negative seed": Wrong({"seed": -1}, r"seed must lie in \[0, 999\], not -1"),
    "seed": Wrong({"seed": HUGE}, r"seed must lie in \[0, 999\], not an integer of about 401 digits"),
    "twin": Wrong({"twin": 2}, r"twin must lie in \[0, 1\], not 2"),
    "split": Wrong({"split": HUGE}, r"split must lie in \[1, 3\], not an integer of about 401 digits"),
    "400 digits": Wrong({"epochs": HUGE}, "epochs must be at most 1000000, not an integer of about 401 digits"),
    "-400 digits": Wrong({"epochs": -HUGE}, "epochs must be at least 1, not an integer of about 401 digits"),
    "no clips": Wrong({"train_clips": 0}, "train_clips must be at least 16, not 0"),
    "nan rho": Wrong({"rho": math.nan}, r"rho must lie in \[0, 1\], not nan"),
    "nan dropout": Wrong({"dropout": math.nan}, r"dropout must lie in \[0, 1\), not nan"),
    "nan extent": Wrong({"extent": math.nan}, r"extent must lie in \[0.05, 0.28\], not nan"),
    "nan contrast": Wrong({"contrast": math.nan}, r"contrast must lie in \(0, 1\], not nan"),
    "nan momentum": Wrong({"momentum": math.nan}, r"momentum must lie in \[0, 1\), not nan"),
    "nan warmup": Wrong({"warmup": math.nan}, r"warmup must lie in \[0, 1\), not nan"),
    **{f"nan {name}": Wrong({name: math.nan}, f"{name} must be positive, it is nan")
       for name in ("learning_rate", "width", "fps", "bound", "save_every")},
    **{f"nan {name}": Wrong({name: math.nan}, f"{name} must not be negative, it is nan")
       for name in ("amplitude", "camera", "noise", "weight_decay")},
    **{f"infinite {name}": Wrong({name: math.inf}, f"{name} must be finite, not inf")
       for name in ("learning_rate", "width", "fps", "bound", "save_every", "rho", "noise")},
    "negative infinity": Wrong({"camera": -math.inf}, "camera must be finite, not -inf"),
}  # fmt: skip
# Names and paths.
WRONG_TEXTS = {
    "an arm above": Wrong({"arm": "../../up"}, r"arm must be a name of .*, such as d3d_mine, not '\.\./\.\./up'"),
    "an arm in a folder": Wrong({"arm": "a/b"}, "arm must be a name of .*, not 'a/b'"),
    "an absolute arm": Wrong({"arm": "/tmp/a"}, "arm must be a name of .*, not '/tmp/a'"),
    "a pattern as arm": Wrong({"arm": "*"}, r"arm must be a name of .*, not '\*'"),
    "a class of characters as arm": Wrong({"arm": "r[a-z]b"}, r"arm must be a name of .*, not 'r\[a-z\]b'"),
    "an arm with a line break": Wrong({"arm": "a\nb"}, r"arm must be a name of .*, not 'a\\nb'"),
    "an arm that ends in a line break": Wrong({"arm": "a\n"}, r"arm must be a name of .*, not 'a\\n'"),
    "an arm that is a flag": Wrong({"arm": "_x"}, "arm must be a name of .*, not '_x'"),
    "a hidden arm": Wrong({"arm": ".a"}, r"arm must be a name of .*, not '\.a'"),
    "an arm with a blank": Wrong({"arm": "a b"}, "arm must be a name of .*, not 'a b'"),
    "an arm of the shell": Wrong({"arm": "$(touch x)"}, r"arm must be a name of .*, not '\$\(touch x\)'"),
    "an arm as long as no file's name": Wrong({"arm": "a" * 300}, r"arm must be a name of .*, not 'a+\.\.\.a+'"),
    "an arm of a megabyte": Wrong({"arm": "a" * 10**6}, r"arm must have at most 4096 characters, not 1000000: 'a+.*'"),
    "a root of a megabyte": Wrong(VIDEOS | {"root": "r" * 10**6}, "root must have at most 4096 characters, not .*"),
    "results of a megabyte": Wrong({"results": "r" * 10**6}, "results must have at most 4096 characters, not .*"),
    "NUL in results": Wrong({"results": "a\0b"}, r"results must be a text without NUL characters, .* not 'a\\x00b'"),
    "NUL in root": Wrong(VIDEOS | {"root": "a\0b"}, r"root must be a text without NUL characters, .*"),
    "NUL in teacher": Wrong({"teacher": "\0"}, r"teacher must be a text without NUL characters, .*", "distill"),
    "NUL in flow_cache": Wrong({"flow_cache": "\0"}, r"flow_cache must be a text without NUL characters, .*"),
    "a choice of a megabyte": Wrong({"stream": "x" * 10**6}, r"stream must be one of rgb, flow, not 'x+\.\.\.x+'"),
    "control characters": Wrong({"dataset": "\x1b[31m"}, r"dataset must be one of .*, not '\\x1b\[31m'"),
}
# Types that a flag's text cannot have, and that YAML and papermill can.
WRONG_TYPES = {
    "true as seed": Wrong({"seed": True}, "seed must be of type int like 0, not True"),
    "1.0 as seed": Wrong({"seed": 1.0}, "seed must be of type int like 0, not 1.0"),
    "a text as seed": Wrong({"seed": "0"}, "seed must be of type int like 0, not '0'"),
    "1e3 as epochs": Wrong({"epochs": 1e3}, "epochs must be of type int like 8, not 1000.0"),
    "1 as sync_norm": Wrong({"sync_norm": 1}, "sync_norm must be of type bool like False, not 1"),
    "400 digits as rho": Wrong({"rho": HUGE}, "rho must be finite, not an integer of about 401 digits"),
    "a list": Wrong({"epochs": [1] * 10**4}, r"epochs must be of type int like 8, not \[1, 1, 1, 1, 1, 1, \.\.\.\]"),
    "a mapping": Wrong({"stream": {"a": 1}}, "stream must be of type str like 'rgb', not {'a': 1}"),
    "a number as name": Wrong({"arm": 7}, "arm must be of type str, but arrived as 7 .*quote it in a YAML file"),
    "400 digits as name": Wrong({"arm": HUGE}, "arm must be of type str, but arrived as an integer of about 401 .*"),
    "an unknown name": Wrong({"sede": 1}, "'sede' is no parameter of 'train', which takes .*"),
    "an unknown name of a megabyte": Wrong({"s" * 10**6: 1}, r"'s+\.\.\.s+' is no parameter of 'train', .*"),
}
# More than any machine has, of parameters that are fine one by one.
TOO_MUCH_MEMORY = {
    "clips": Wrong(
        {"train_clips": 10**8, "frames": 10_000, "size": 10_000},
        r"this run takes at least 4e\+11 GB of memory, 4e\+11 GB of it for the clips, but cpu has \S+ GB free: make it "
        r"smaller by train_clips \(100000000\), test_clips \(256\), frames \(10000\) or size \(10000\)",
    ),
    "test clips": Wrong({"test_clips": 10**8, "frames": 10_000, "size": 10_000}, ".* for the clips, .*"),
    "order": Wrong(
        {"epochs": 10**6, "train_clips": 10**7},
        r".* GB of it for the order of the training clips, .*by epochs \(1000000\) or train_clips \(10000000\)",
    ),
    "batch": Wrong(
        {"batch_size": 10**5, "train_clips": 10**5, "frames": 1000, "size": 10_000, "width": 8.0},
        ".* for the activations of a batch, .* smaller by batch_size .*accumulate .*",
    ),
    "views of a video": Wrong(
        VIDEOS | {"view_clips": 1000, "view_crops": 1000, "frames": 10_000, "size": 10_000},
        r".* for the views of a test video, .* by view_clips \(1000\), view_crops \(1000\), frames .*",
    ),
}
REFUSED = OUT_OF_RANGE | WRONG_TEXTS


def as_flags(params: dict[str, Any]) -> list[str]:
    return [f"--{name.strip('_').replace('_', '-')}={value}" for name, value in params.items()]


def write_config(params: dict[str, Any]):
    """Writes a file for --config, with nothing that only Python's YAML can read."""
    return lambda folder: (folder / "run.yaml").write_text(yaml.safe_dump(params))


def cases_of(how: str, wrongs: dict[str, Wrong]) -> list[BadInput]:
    cases = []
    for name, (params, message, experiment) in wrongs.items():
        command, write = ["train", "--experiment", experiment], None
        if how == "flags":
            command += as_flags(params)
        else:
            command, write = [*command, "--config", "run.yaml"], write_config(params)
            # The reader of YAML itself takes no such numbers.
            message = rf"({message}|run\.yaml holds .* in '\w+': a (number must be finite|whole number has at most .*))"
        cases.append(BadInput(f"{how}: {name}", command, write, f"d3d train: {message}"))
    return cases


def write_file(name: str):
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("kept")

    return write


def write_link(folder: Path) -> None:
    (folder / "dangling").symlink_to("nowhere")


TRAIN = ["train", "--train-clips=32", "--test-clips=16"]
COMMANDS = [
    BadInput("true as a flag", ["train", "--seed=True"], None, ".*--seed: it must be of type int, not 'True'", code=2),
    BadInput("1.0 as a flag", ["train", "--seed=1.0"], None, ".*--seed: it must be of type int, not '1.0'", code=2),
    BadInput("5000 digits as a flag", ["train", f"--size={'9' * 5000}"], None, r".*of type int, not '9+.*9+'", code=2),
    BadInput("text of a megabyte as a flag", ["train", f"--size={'x' * 10**6}"], None, ".*not 'x+.*x+'", code=2),
    BadInput("experiment", ["train", "--config=run.yaml"], write_config({"experiment": "x" * 10**6}),
             r"d3d train: experiment in run\.yaml must be one of train, distill, evaluate, not 'x+\.\.\.x+'"),
    BadInput("None", ["train", "--config=run.yaml"], write_config({"root": None}),
             r"d3d train: run\.yaml sets 'root' to None: it must map parameters to values"),
    BadInput("more digits than Python writes", ["train", "--config=run.yaml"],
             lambda folder: (folder / "run.yaml").write_text(f"epochs: 0x1{'0' * 9000}"),
             r"d3d train: run\.yaml holds an integer of about 10838 digits in 'epochs': a whole number .*"),
    BadInput("a date", ["train", "--config=run.yaml"],
             lambda folder: (folder / "run.yaml").write_text("arm: 2026-01-01"),
             "d3d train: arm must be a name of .*, not '2026-01-01'"),
    BadInput("results is a file", [*TRAIN, "--results=taken"], write_file("taken"),
             r"d3d train: .*taken is a file, but it must be a folder"),
    BadInput("results lies in a file", [*TRAIN, "--results=taken/a/b"], write_file("taken"),
             r"d3d train: .*taken is a file, but it must be a folder"),
    BadInput("results is a link to nothing", [*TRAIN, "--results=dangling"], write_link,
             r"d3d train: .*dangling is a link to nothing, but it must be a folder"),
    BadInput("results is a file of an odd name", [*TRAIN, "--results=a\n\x1b[31m'"], write_file("a\n\x1b[31m'"),
             r"d3d train: .*a\\n\\x1b\[31m' is a file, but it must be a folder"),
    BadInput("results has no name for a file", [*TRAIN, f"--results={'a' * 300}"], None,
             "d3d train: .*File name too long"),
    *(BadInput(f"a folder in place of .{ending}", [*TRAIN, "--results=r"],
               lambda folder, ending=ending: (folder / f"r/train/rgb-seed0.{ending}").mkdir(parents=True),
               rf"d3d train: .*r/train/rgb-seed0\.{ending} is a folder, but it must be a file")
      for ending in ("json", "jsonl", "npz", "safetensors")),
    BadInput("a file in place of .state", [*TRAIN, "--results=r"], write_file("r/train/rgb-seed0.state"),
             r"d3d train: .*r/train/rgb-seed0\.state is a file, but it must be a folder"),
    BadInput("flow_cache is a file", [*TRAIN, "--flow-cache=taken"], write_file("taken"),
             r"d3d train: .*taken is a file, but it must be a folder"),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        *cases_of("flags", REFUSED | TOO_MUCH_MEMORY),
        *cases_of("config", WRONG_TYPES),
        # Those that flags refuse too: the same check after another reader.
        *(pytest.param(case, marks=pytest.mark.slow) for case in cases_of("config", REFUSED | TOO_MUCH_MEMORY)),
        *COMMANDS,
    ],
    ids=str,
)
def test_is_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)


@pytest.mark.parametrize("name", REFUSED | WRONG_TYPES)
def test_a_notebook_refuses_it_with_the_same_sentence_and_writes_nothing(name, tmp_path, monkeypatch):
    params, message, experiment = (REFUSED | WRONG_TYPES | TOO_MUCH_MEMORY)[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=r".") as error:
        launch.train(experiment, defaults(experiment) | params)
    assert re.fullmatch(message, str(error.value)), str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_notebook_starts_no_more_processes_than_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, **__: pytest.fail("training was started"))
    with pytest.raises(ValueError, match=r"processes 1024 take at least 256 GB of memory, .* has 1 GB free"):
        launch.train("train", defaults("train") | {"processes": 1024})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("experiment", "params", "message"),
    [
        ("leak", {"leak_clips": 10**12}, "leak_clips must be at most 100000000, not 1000000000000"),
        ("leak", {"train_clips": 10**8, "size": 10_000}, ".* for the clips, .*"),
        ("tvl1", {"pairs": 10**12}, "pairs must be at most 100000000, not 1000000000000"),
        ("tvl1", {"pairs": 10**8, "size": 10_000}, r".* for the rendered clips, .* by pairs \(100000000\), .*"),
        ("probe", {"decoder_epochs": 10**12}, "decoder_epochs must be at most 1000000, not 1000000000000"),
        ("probe", {"pictures": 10**12}, "pictures must be at most 100000000, not 1000000000000"),
        ("probe", {"width": 8.0, "train_clips": 10**8, "size": 10_000}, ".* for the clips, .*"),
        ("attribution", {"steps": 10**12}, "steps must be at most 10000, not 1000000000000"),
        ("attribution", {"clips": 10**12}, "clips must be at most 100000000, not 1000000000000"),
        ("attribution", {"endpoint": "x" * 10**6}, "endpoint must have at most 4096 characters, not 1000000: .*"),
        ("detect", {"train_scenes": 10**12}, "train_scenes must be at most 100000000, not 1000000000000"),
        ("detect", {"train_scenes": 10**8, "size": 10_000}, r".* for the scenes, .* by train_scenes \(100000000\), .*"),
        ("detect", {"scenes_per_step": 1}, "scenes_per_step must be at least 2, not 1"),
        ("detect", {"drawn_scenes": 200}, r"drawn_scenes must lie between 0 and test_scenes \(128\), not 200"),
        ("detect", {"weights": "a"}, "weights is only for dataset 'ava', not for dataset 'sprites'"),
        ("detect", {"arm": "mine"}, "arm is only for dataset 'ava': .*"),
        ("detect", {"dataset": "ucf101", "root": "a"}, "dataset must be sprites or ava, .*, not 'ucf101'"),
        ("detect", {"dataset": "ava"}, "dataset 'ava' needs root: .*"),
        ("detect", {"dataset": "ava", "root": "a"}, "dataset 'ava' needs weights: .*"),
        (
            "detect",
            {"dataset": "ava", "root": "a", "weights": "a", "workers": 1000, "scenes_per_step": 10**6, "size": 9999},
            ".* for the frames of a step, .*",
        ),
        ("fuse", {"results": "a\0"}, "results must be a text without NUL characters, .*"),
        *((name, {"results": "taken"}, ".*taken is a file, but it must be a folder") for name in EXPERIMENTS),
    ],
)
def test_other_experiments_refuse_it_before_they_start(experiment, params, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    no_teacher = {"lambda_": 0.0} if experiment == "distill" else {}
    with pytest.raises((ValueError, OSError)) as error:
        start(experiment, defaults(experiment) | no_teacher | params)
    assert re.search(f"{message}$", str(error.value)), str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


PARAMETERS = [(experiment, name) for experiment in EXPERIMENTS for name in EXPERIMENTS[experiment].names]


@pytest.mark.parametrize(("experiment", "name"), PARAMETERS, ids=str)
def test_every_parameter_is_bounded_and_has_one_type(experiment, name):
    """None can be infinite, not a number, huge or of another type; each error names the parameter."""
    kind = field_of(experiment, name).type
    wrong = {
        int: [HUGE, -HUGE, True, 1.5, "1", None, [1]],
        float: [math.nan, math.inf, -math.inf, HUGE, 1e300, -1e300, True, "1", None],
        str: ["x" * 10**6, "\0", True, 1, 1.5, None, ["x"], HUGE],
        bool: [1, 0, 0.0, "true", None],
    }[kind]
    teacher = {"teacher": "a"} if experiment == "distill" and name != "teacher" else {}
    for value in wrong:
        with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
            make_config(experiment, from_namespace(experiment, defaults(experiment) | teacher | {name: value}))
        assert len(str(error.value)) < 300
        assert str(error.value).isprintable()
