"""The page on Kinetics quotes the model, says nothing that the model does not, and prints with a reader's numbers."""

from dataclasses import replace

import pytest

from d3d.report import pages, scale, scale_page
from d3d.report.scale_inputs import DATASETS, quantities
from d3d.study.plan import BENCH


def cells(text, first):
    """The cells of the row of a Markdown table that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_page_quotes_the_model():
    text, values = scale_page.page(BENCH), quantities(BENCH)
    costs = {n: [scale.stage_cost(stage, "kinetics400", n, values) for stage in scale.STAGES] for n in (1, 8, 64)}
    hours = {n: sum(cost.hours for cost in by_stage) for n, by_stage in costs.items()}
    assert f"{hours[1]:,.0f} GPU-hours and " in text
    assert f"{hours[64]:.0f} hours on 64.**" in text
    total = [float(cell.replace(",", "")) for cell in cells(text, "all")[1:-1]]
    assert total == pytest.approx([*hours.values(), hours[1], 64 * hours[64]], rel=0.01)
    for name, value in values.items():
        assert value.source in " ".join(cells(text, f"`{name}`"))
    assert all(dataset.label in text for dataset in DATASETS.values())
    assert "{" not in text.replace("```{image}", "")


def test_a_sentence_that_is_no_longer_so_stops_the_page(monkeypatch):
    fast = replace(quantities(BENCH)["decode_rate"], value=1000.0)
    monkeypatch.setattr(scale_page, "quantities", lambda bench: quantities(bench) | {"decode_rate": fast})
    with pytest.raises(
        ValueError, match="'decoding is the slowest part of training from the first GPU on', and by the "
    ):
        scale_page.page(BENCH)


def test_the_command_takes_a_reader_s_numbers(capsys):
    pages.main(["scale", "--dataset", "ucf101", "--gpus", "4", "1", "--set", "cores_per_gpu=64", "storage_bytes=1e10"])
    text = capsys.readouterr().out
    assert text.startswith("UCF101, one seed; a model")
    assert "| hours on 1 GPU " in text
    assert "| hours on 4 GPUs " in text
    assert cells(text, "`cores_per_gpu`")[1:] == ["64 cores", "that decode for one GPU", "changed by the reader"]
    changed = quantities(BENCH, {"cores_per_gpu": 64, "storage_bytes": 1e10})
    hours = scale.stage_cost("rgb", "ucf101", 4, changed).hours
    assert float(cells(text, "RGB")[2]) == pytest.approx(hours, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "cores_per_gpu=x"], "--set takes NAME=VALUE with a number, such as cores_per_gpu=64, not "),
        (["--set", "cores=4"], "the model of costs has no input 'cores', but stream_epochs, "),
        (["--set", "cores_per_gpu=0"], "cores_per_gpu must be positive and finite, not 0.0"),
        (["--dataset", "k400"], "dataset must be one of kinetics400, kinetics600, "),
        (["--gpus", "0"], "gpus must be at least 1, not 0"),
        (
            ["--bench", "nowhere"],
            "nowhere lacks 'decode', which the model of costs needs: give records of `make bench`",
        ),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, expected):
    with pytest.raises(SystemExit) as ended:
        pages.main(["scale", *arguments])
    assert expected in ended.value.code
    assert "\n" not in ended.value.code
