"""The page for whoever has the paper's data sets: its commands are those of the ledger, its numbers are computed."""

import math
import re
import subprocess

import numpy as np
import pytest
from scipy import stats

from d3d.report import ledger_page, row_costs
from d3d.report.claims import read_claims
from d3d.report.ledger import judge
from d3d.report.row_costs import COMMAND, TRAINING, Route, Work, route_cost
from d3d.report.scale import disk_bytes, quantities, stage_cost
from d3d.study import archive, plan, records
from d3d.study.records import Record
from tests.report.test_claims import CLAIMS, ROUTES, calls, parsed
from tests.study.test_records import PROVENANCE

VALUES = quantities()
ROWS = [name for name in CLAIMS if name.startswith("B")]


@pytest.fixture(scope="module")
def page():
    return ledger_page.page(judge(read_claims(), records.load(plan.PUBLISHED)))


def test_every_row_has_its_claim_verdict_and_cost(page):
    for name in ROWS:
        claim = CLAIMS[name]
        (line,) = [line for line in page.splitlines() if line.startswith(f"| [{name}](row-{name.lower()})")]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert (cells[1], cells[2], cells[3]) == (claim.statement.rstrip("."), f"{claim.claimed:.1f}", "**needs data**")
        hours = route_cost(COMMAND[name], VALUES).hours
        assert [float(cell) for cell in cells[4:6]] == pytest.approx([hours[1], hours[8]], rel=0.05, abs=0.06)
        assert f"(row-{name.lower()})=" in page
    assert set(COMMAND) == set(ROWS)
    assert set(TRAINING) == {name for name in ROWS if CLAIMS[name].training}


@pytest.mark.parametrize(("name", "kind"), ROUTES)
def test_a_command_is_printed_as_the_ledger_has_it(page, name, kind):
    """Broken into lines, a shell runs the same calls."""
    command = getattr(CLAIMS[name], kind)
    lines = ledger_page.shell_lines(command)
    assert calls(lines) == calls(command)
    assert max(map(len, lines.splitlines())) <= ledger_page.WIDTH
    assert lines in page


def test_all_code_of_the_page_is_shell(page):
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > len(ROUTES)
    for block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
        assert done.returncode == 0, (block, done.stderr)


@pytest.mark.parametrize(("arm", "outputs"), ledger_page.CONTROLS.items())
def test_a_control_differs_from_d3d_in_one_parameter(arm, outputs):
    d3d = [run for run in map(parsed, calls(CLAIMS["B8"].training)) if run[0] == "distill"]
    control = [parsed(call) for call in calls(ledger_page.control_command(CLAIMS["B8"], outputs))]
    assert len(control) == len(d3d) == CLAIMS["B8"].seeds
    for (_, first), (experiment, second) in zip(d3d, control, strict=True):
        assert {name for name in first if first[name] != second[name]} == {"outputs"}
        assert (plan.arm_name("distill", first), plan.arm_name(experiment, second)) == ("d3d", arm)


def test_flow_is_computed_before_a_command_that_reads_it(page):
    for name in ("B1", "B4"):
        section = page.split(f"(row-{name.lower()})=")[1].split("(row-")[0]
        root = next(parsed(call)[1]["root"] for call in calls(CLAIMS[name].command))
        assert re.search(rf"^d3d flow --dataset \w+ --root {root} .*--out FLOW$", section, re.MULTILINE)
        assert "`RGB_K400.safetensors`" in section
    assert "d3d flow --dataset kinetics600 --root KINETICS600 --out FLOW" in page


def test_the_cost_of_a_route_is_the_sum_of_its_stages():
    route = Route("ucf101", (Work("extraction"), Work("flow", 3), Work("evaluation", 2, ("d3d", "rgb"))))
    cost = route_cost(route, VALUES, gpus=(1,))
    stages = [stage_cost(stage, "ucf101", 1, VALUES) for stage in ("extraction", "flow")]
    evaluation = [stage_cost("evaluation", "ucf101", 1, VALUES, evaluated=[arm]) for arm in ("d3d", "rgb")]
    assert cost.hours[1] == pytest.approx(
        stages[0].hours + 3 * stages[1].hours + 2 * (evaluation[0].hours + evaluation[1].hours)
    )
    videos = disk_bytes("ucf101", VALUES)["videos"]
    assert cost.disk == pytest.approx(videos + stages[0].disk_bytes + 3 * stages[1].disk_bytes)
    # Without training videos, only those of validation count.
    alone = route_cost(Route("ucf101", (), training_videos=False), VALUES)
    assert alone.disk == pytest.approx(videos * 3_783 / 13_320)


def test_disagreement_is_the_share_on_which_one_is_right(tmp_path):
    labels = np.zeros(8, int)
    for arm, predicted in (("d3d", [0, 0, 0, 0, 1, 1, 1, 1]), ("rgb", [0, 0, 0, 1, 1, 1, 0, 1])):
        logits = np.eye(2, dtype=np.float32)[predicted]
        arrays = {"logits/iid": logits, "labels/iid": labels, "groups/iid": np.array(["a"] * 8)}
        top1 = float((logits.argmax(1) == labels).mean())
        records.write(tmp_path / "s", Record("distill", arm, 3, {}, {"iid/top1": top1}, True, PROVENANCE), arrays)
    study = archive.pack(tmp_path / "s")
    assert row_costs.disagreement(study, "d3d", "rgb", "iid") == [2 / 8]
    with pytest.raises(ValueError, match=r"s\.jsonl has no d3d and flow of the same seed"):
        row_costs.disagreement(study, "d3d", "flow", "iid")


def test_a_detectable_difference_is_detected_with_its_power():
    """Simulated: two networks on 5,000 clips that disagree on a tenth of them."""
    rng, clips, share = np.random.default_rng(0), 5_000, 0.1
    difference = row_costs.detectable_over_clips(clips, share)
    assert difference == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * math.sqrt(share / clips), rel=0.01
    )
    first, second = (share + difference) / 2, (share - difference) / 2
    draws = rng.multinomial(clips, [first, second, 1 - share], 4_000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.02)
    few, many = (row_costs.detectable_over_seeds(n, 0.01) for n in (3, 12))
    assert few > many > 0.01 * (1.96 + 0.84) / math.sqrt(12)


@pytest.mark.parametrize(
    ("hours", "text"), [(0.05, "3 minutes"), (0.58, "30 minutes"), (2.0, "2.0 hours"), (41, "41 hours")]
)
def test_durations(hours, text):
    assert ledger_page._hours(hours) == text


def test_a_route_of_released_weights_trains_nothing():
    for name in ("B8", "B9", "B10", "B11"):
        experiments = {parsed(call)[0] for call in calls(CLAIMS[name].command)}
        assert experiments <= {"evaluate", "fuse"}
        assert {work.stage for work in COMMAND[name].work} == {"evaluation"}
