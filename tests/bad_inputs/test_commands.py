"""Commands that do not exist."""

import pytest

from tests.bad_inputs.harness import BadInput, assert_refused

CASES = [
    BadInput(
        "unknown command", ["trian"], None, r"no command 'trian', but train, data, .*; `d3d --help` describes them"
    ),
    BadInput("unknown flag of train", ["train", "--epoch-count", "3"], None, r".*unrecognized arguments.*", code=2),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
