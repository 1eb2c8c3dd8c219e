"""Commands and flags that do not exist, or have wrong values."""

import pytest

from tests.bad_inputs.harness import BadInput, assert_refused

CASES = [
    BadInput(
        "unknown command", ["trian"], None, r"no command 'trian', but train, data, .*; `d3d --help` describes them"
    ),
    BadInput(
        "text as a whole number", ["train", "--epochs", "x"], None,
        "d3d train: error: argument --epochs: it must be of type int, not 'x'", code=2,
    ),
    BadInput(
        "text as a truth value", ["train", "--sync-norm", "maybe"], None,
        ".*argument --sync-norm: it must be of type bool, not 'maybe'", code=2,
    ),
    BadInput("no epochs", ["train", "--epochs", "0"], None, "d3d train: epochs must be at least 1, not 0"),
    BadInput(
        "flag of distill", ["train", "--lambda", "0.3"], None,
        "d3d train: 'lambda_' is no parameter of 'train', which takes .*",
    ),
    BadInput("no configuration", ["train", "--config", "none.yaml"], None, r"d3d train: none\.yaml: No such file.*"),
    BadInput(
        "input of the model of costs that is no number", ["report", "scale", "--set", "cores_per_gpu=x"], None,
        "--set takes NAME=VALUE with a number, such as cores_per_gpu=64, not 'cores_per_gpu=x'",
    ),
    BadInput(
        "costs without a bench", ["report", "scale"], None,
        r"results/bench\.jsonl lacks 'decode', which the model of costs needs: give records of `make bench`",
    ),
    BadInput("unknown flag of train", ["train", "--epoch-count", "3"], None, r".*unrecognized arguments.*", code=2),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
