"""The picture and the tables of the network, and the API reference."""

import re
from pathlib import Path

import pandas as pd
import pytest

from d3d.report import api, network
from d3d.s3dg import s3dg
from d3d.s3dg.summary import stages
from d3d.study.plan import PUBLISHED

SIZE = (16, 64, 64)


def test_the_stages_are_those_of_the_network():
    described, total = stages(SIZE, num_classes=16)
    model = s3dg(num_classes=16)
    assert total == sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for p in model.Conv2d_0c_1x1.parameters())
    assert sum(stage.parameters for stage in described) == total - head
    by_name = {stage.endpoint: stage for stage in described}
    # TF-slim's sizes for 64 frames of 224 x 224 are strides; these follow by hand.
    assert by_name["Conv2d_1a_7x7"][1:5] == (64, 8, 32, 32)
    assert by_name["Mixed_4f"][1:5] == (832, 4, 4, 4)
    assert by_name["Mixed_5c"][1:5] == (1024, 2, 2, 2)


def test_a_flow_network_differs_in_its_first_layer():
    (rgb, total), (flow, flow_total) = (stages(SIZE, num_classes=16, in_channels=n) for n in (3, 2))
    # The stem has 3 x 7 x 7 weights per input and output channel.
    assert total - flow_total == rgb[0].parameters - flow[0].parameters == 3 * 7 * 7 * 64


@pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
def test_network():
    table = pd.DataFrame(stages(SIZE, num_classes=16)[0])
    return network.draw(table, clip="16 × 64 × 64 × 3", named=("Mixed_4b", "Mixed_4f"))


def test_the_table_of_hyperparameters_has_the_values_of_the_records():
    table = network.hyperparameters(PUBLISHED, ["rgb", "rgb_longer", "d3d", "no such arm"]).set_index("parameter")
    assert table.loc["epochs", "value"] == "24 (RGB); 12 (RGB-longer and D3D)"
    assert table.loc["lambda_", "value"] == "0 (RGB-longer); 0.3 (D3D)"
    assert table.loc["teacher", "value"] == "flow-seed0 (D3D)"
    assert table.loc["momentum", "value"] == "0.9"


def test_the_reference_has_every_room_and_public_name():
    page = api.page(Path("d3d"))
    rooms = {path.parent.name for path in Path("d3d").glob("*/__init__.py")}
    assert set(api.ROOMS) == rooms == set(re.findall(r"^## d3d\.(\w+)$", page, re.MULTILINE))
    assert ".. autofunction:: d3d.s3dg.network.s3dg\n" in page
    assert ".. autoclass:: d3d.s3dg.network.S3DG\n   :members:\n" in page
    assert "| `d3d.flow.estimate` |" in page
