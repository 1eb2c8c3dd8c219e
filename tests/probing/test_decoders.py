"""Flow decoders: what they are asked, and that they can answer."""

import numpy as np
import pytest
import torch

from d3d.data.sprite_clips import sprite_clips
from d3d.flow.fields import endpoint_error
from d3d.probing import decoders
from d3d.probing import linear as probes
from d3d.s3dg.network import s3dg
from tests import configs

CONFIG = configs.data(frames=8, size=32, extent=0.28, amplitude=2.0, noise=0.0, camera=0.0, flow="exact", bound=2.0)


@pytest.fixture(scope="module")
def sets():
    return [sprite_clips(CONFIG, split, 128, flow=True, true_flow=True) for split in ("train/0", "iid")]


def test_flow_is_averaged_to_the_cells_of_a_grid():
    flow = torch.zeros(1, 2, 2, 4, 4)
    flow[0, 0, :, :2, :2] = torch.tensor([1.0, 3.0])[:, None, None]
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, :2] = True
    truth = decoders.averaged(flow, mask, (1, 2, 2))
    assert truth.flow[0, 0, 0].tolist() == [[2, 0], [0, 0]]
    assert truth.share[0, 0].tolist() == [[0.25, 0], [0, 0]]


def test_end_point_error_is_a_length():
    a, b = torch.zeros(1, 2, 1, 1, 2, requires_grad=True), torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 2, 1, 1, 2)
    error = endpoint_error(a, b)
    assert error.flatten().tolist() == pytest.approx([5, 0], abs=1e-3)
    error.sum().backward()
    assert a.grad.isfinite().all()


def test_dense_flow_has_every_pixel_in_its_place():
    decoder = decoders.FlowDecoder(4, (2, 2, 4))
    with torch.no_grad():
        decoder.out.weight.zero_()
        # Component c at place (t, h, w) within a cell says 1000 c + 100 t + 10 h + w.
        places = torch.tensor(
            [
                [1000.0 * c + 100 * t + 10 * h + w for t in range(2) for h in range(2) for w in range(4)]
                for c in range(2)
            ]
        )
        decoder.out.bias[2:] = places.flatten()
    grid, fine = decoder(torch.rand(3, 4, 2, 3, 2))
    assert grid.shape == (3, 2, 2, 3, 2)
    assert fine.shape == (3, 2, 4, 6, 8)
    for c, t, h, w in [(0, 0, 0, 0), (0, 1, 0, 3), (1, 2, 5, 6), (1, 3, 4, 1)]:
        assert fine[0, c, t, h, w] == 1000 * c + 100 * (t % 2) + 10 * (h % 2) + w % 4


def test_a_network_tuned_for_flow_tells_it_better_than_a_frozen_one(sets):
    found = {}
    for tune in (False, True):
        model = s3dg(16, width=0.1, in_channels=2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found[tune], pictures = decoders.decode(
            model, *sets, "flow", dense="Mixed_3c", epochs=12, batch_size=16, tune=tune, pictures=2
        )
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert same != tune
        assert pictures["dense"].shape == (2, 2, len(pictures["frames"]), 32, 32)
    # The first endpoint of any network shows the flow it was given; a deep one must learn to pass it on.
    assert all(
        errors["Conv2d_1a_7x7/target_epe"] < 0.5 * errors["Conv2d_1a_7x7/target_epe_still"] for errors in found.values()
    )
    assert found[False]["Mixed_3c/target_epe"] > 0.9 * found[False]["Mixed_3c/target_epe_still"]
    assert found[True]["Mixed_3c/target_epe"] < 0.6 * found[True]["Mixed_3c/target_epe_still"]
    names = {f"{e}/{m}" for e in (*probes.ENDPOINTS, "dense") for m in ("epe", "target_epe", "target_epe_still")}
    assert set(found[True]) == names


def test_the_same_seed_gives_the_same_errors(sets):
    runs = [
        decoders.decode(s3dg(16, width=0.1), *sets, "rgb", dense="Mixed_4f", epochs=1, batch_size=64, seed=s)[0]
        for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_errors_are_those_of_all_clips_by_hand(sets):
    """Decoders that always answer zero err by the length of the flow, on all cells and on the target's."""
    _, test = sets
    trainer = decoders._Trainer(s3dg(16, width=0.1), test, "rgb", dense="Mixed_4f", tune=False, batch_size=50)
    for decoder in trainer.decoders.values():
        torch.nn.init.zeros_(decoder.out.weight)
        torch.nn.init.zeros_(decoder.out.bias)
    errors = decoders._errors(trainer, test)
    length, mask = test.true_flow.float().norm(dim=1).numpy(), test.mask.numpy()
    assert errors["dense/epe"] == pytest.approx(length.mean(), rel=1e-3)
    assert errors["dense/target_epe"] == pytest.approx(length[mask].mean(), rel=1e-3)
    flow = test.true_flow.float().unfold(2, 4, 4).unfold(3, 16, 16).unfold(4, 16, 16).mean((-1, -2, -3)).norm(dim=1)
    share = test.mask.float().unfold(1, 4, 4).unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2, -3))
    assert errors["Mixed_4f/epe"] == pytest.approx(flow.mean().item(), rel=1e-3)
    assert errors["Mixed_4f/target_epe"] == pytest.approx(((flow * share).sum() / share.sum()).item(), rel=1e-3)
    assert errors["Mixed_4f/target_epe"] == pytest.approx(errors["Mixed_4f/target_epe_still"], rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a step on a GPU")
def test_a_captured_step_learns_what_a_plain_one_learns(sets):
    there = [sprite_clips(CONFIG, split, 128, flow=True, true_flow=True, device="cuda") for split in ("train/0", "iid")]
    near = decoders.decode(s3dg(16, width=0.25), *sets, "rgb", dense="Mixed_4f", epochs=4, batch_size=32, tune=True)[0]
    far = decoders.decode(
        s3dg(16, width=0.25).cuda(), *there, "rgb", dense="Mixed_4f", epochs=4, batch_size=32, tune=True
    )[0]
    assert np.allclose([far[n] for n in near], list(near.values()), rtol=0.1)
