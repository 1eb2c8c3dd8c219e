"""Numbers and verdicts in words: names, what decided a verdict, and the table of conditions."""

import pandas as pd
import pytest

from d3d.report import wording
from d3d.report.claims import Claim, Condition, Ledger
from d3d.report.ledger import judge

TOP1 = "iid/top1"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["A1"], "A1"),
        (["A1", "A3"], "A1 and A3"),
        (["H1", "H2", "H4"], "H1, H2 and H4"),
        (["H1", "H3", "H4", "H5"], "H1 and H3 to H5"),
        (["B9", "B10", "B11", "H1"], "B9 to B11 and H1"),
        (["H1 is open", "H2 holds", "H3 fails"], "H1 is open, H2 holds and H3 fails"),
    ],
)
def test_joined_names(names, text):
    assert wording.join_names(names) == text


def decision(*values_and_bounds, seeds=10, judged=True):
    """What decided the verdict on a claim whose i-th condition is: the value of arm a<i> lies above its bound."""
    numbered = list(enumerate(values_and_bounds))
    conditions = tuple(Condition(f"a{i}", TOP1, above if judged else None) for i, (_, above) in numbered)
    claim = Claim("H1", "", "", "", judged=judged, conditions=conditions)
    rows = [(f"a{i}", s, TOP1, v + 0.01 * (s % 2)) for i, (v, _) in numbered for s in range(seeds)]
    rows = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)
    return wording.decision_text(judge(Ledger((claim,), 10), rows)[0])


def test_what_decided_a_verdict():
    assert decision((0.5, 0.1), (0.2, 0.1)).startswith("2 of 2 conditions met; tightest: a1 in iid top-1: 0.205 [")
    assert decision((0.5, 0.1), (0.0, 0.1)).startswith("1 of 2 conditions met; violated: a1 in iid top-1: 0.005 [")
    assert decision((0.5, 0.1), (0.0, 0.1)).endswith("], must be > 0.1")
    assert decision((0.5, 0.1), (0.095, 0.1)).startswith("1 of 2 conditions met; undecided: a1 in iid top-1: 0.100 [")
    assert decision((0.5, 0.1), seeds=3) == "3 of 10 seeds"
    assert decision((0.5, 0.1), seeds=0) == "no records of iid top-1"
    assert decision((0.5, 0.1), judged=False) == "reported, not judged"


def test_conditions_are_tabulated_with_what_could_have_been_seen():
    conditions = (
        Condition("d3d - rgb", TOP1, above=0.0),
        Condition("d3d - flow", TOP1, below=-0.05),
        Condition("d3d - rgb_twin", TOP1, above=0.0),
    )
    claim = Claim("H1", "", "", "", judged=True, conditions=conditions)
    seen = Claim("H2", "", "", "", judged=False, conditions=(Condition("d3d / rgb", TOP1),))
    values = {"d3d": (0.70, 0.72, 0.74), "rgb": (0.60, 0.60, 0.60), "flow": (0.70, 0.72, 0.74)}
    rows = [(arm, s, TOP1, v) for arm, by_seed in values.items() for s, v in enumerate(by_seed)]
    rows = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(stand_in=True)
    lines = wording.condition_table(judge(Ledger((seen, claim), 3), rows), ["H1", "H2"], seeds=3).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    # Mean .12 ± 4.303 * .02 / sqrt(3); a spread of .02 over three seeds shows 3.26 * .02 with a probability of 80 %.
    assert cells[2] == ["H1", "D3D − RGB", "iid top-1", "+0.120 [+0.070, +0.170]", "> 0", "supported", "0.065"]
    assert cells[3][3:] == ["0.000 [0.000, 0.000]".replace("0.0", "+0.0"), "< −0.05", "refuted", "0.000"]
    assert cells[4][3:] == ["needs data", "> 0", "needs data", "—"]
    assert [row[0] for row in cells[2:]] == ["H1", "H1", "H1", "H2"]
    assert cells[5][4:6] == ["", "reported"]
