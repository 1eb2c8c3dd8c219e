"""Flow decoders: their output, their errors, and what they learn."""

import numpy as np
import pytest
import torch

from d3d.data.sprite_clips import sprite_clips
from d3d.flow.fields import endpoint_error
from d3d.probing import decoders
from d3d.s3dg.network import s3dg
from tests import configs

# A large target on a still background, without noise.
EASY = {"extent": 0.28, "amplitude": 2.0, "noise": 0.0, "camera": 0.0, "flow": "exact", "bound": 2.0}


def train_and_test_clips(frames, train, test, device="cpu"):
    config = configs.data(frames=frames, size=32, **EASY)
    return [
        sprite_clips(config, split, count, flow=True, true_flow=True, device=device)
        for split, count in (("train/0", train), ("iid", test))
    ]


def test_flow_and_mask_are_averaged_to_the_cells_of_a_grid():
    flow = torch.zeros(1, 2, 2, 4, 4)
    flow[0, 0, :, :2, :2] = torch.tensor([1.0, 3.0])[:, None, None]
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, :2] = True
    truth = decoders.average_to_grid(flow, mask, (1, 2, 2))
    assert truth.flow[0, 0, 0].tolist() == [[2, 0], [0, 0]]
    assert truth.target_fraction[0, 0].tolist() == [[0.25, 0], [0, 0]]


def test_end_point_error_is_a_length_with_finite_gradients():
    a, b = torch.zeros(1, 2, 1, 1, 2, requires_grad=True), torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 2, 1, 1, 2)
    error = endpoint_error(a, b)
    assert error.flatten().tolist() == pytest.approx([5, 0], abs=1e-3)
    error.sum().backward()
    assert a.grad.isfinite().all()


def test_dense_flow_has_every_pixel_at_its_position():
    decoder = decoders.FlowDecoder(4, (2, 2, 4))
    with torch.no_grad():
        decoder.out.weight.zero_()
        # Component c at position (t, h, w) within a cell is 1000 c + 100 t + 10 h + w.
        dense_bias = torch.tensor(
            [
                [1000.0 * c + 100 * t + 10 * h + w for t in range(2) for h in range(2) for w in range(4)]
                for c in range(2)
            ]
        )
        decoder.out.bias[2:] = dense_bias.flatten()
    coarse_flow, dense_flow = decoder(torch.rand(3, 4, 2, 3, 2))
    assert coarse_flow.shape == (3, 2, 2, 3, 2)
    assert dense_flow.shape == (3, 2, 4, 6, 8)
    for c, t, h, w in [(0, 0, 0, 0), (0, 1, 0, 3), (1, 2, 5, 6), (1, 3, 4, 1)]:
        assert dense_flow[0, c, t, h, w] == 1000 * c + 100 * (t % 2) + 10 * (h % 2) + w % 4


def test_decoders_that_diverge_are_no_result(monkeypatch):
    monkeypatch.setattr(decoders, "ENDPOINTS", ("Conv2d_1a_7x7",))
    monkeypatch.setattr(decoders, "PEAK_LR", float("inf"))
    model, clips = s3dg(16, width=0.1, in_channels=2), train_and_test_clips(2, 32, 16)
    with pytest.raises(FloatingPointError, match=r"the flow decoders' loss was nan at the end of their training"):
        decoders.train_flow_decoders(model, *clips, "flow", dense_endpoint="", epochs=1, batch_size=16)


def test_flow_is_decoded_better_from_a_fine_tuned_network_than_from_a_frozen_one(monkeypatch):
    shallow, deep = "Conv2d_1a_7x7", "Mixed_3c"
    monkeypatch.setattr(decoders, "ENDPOINTS", (shallow, deep))  # deeper ones would only take time
    clips = train_and_test_clips(2, 128, 64)
    relative_error = {}
    for fine_tune in (False, True):
        model = s3dg(16, width=0.1, in_channels=2)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        metrics, _ = decoders.train_flow_decoders(
            model, *clips, "flow", dense_endpoint=deep, epochs=12, batch_size=16, fine_tune=fine_tune
        )
        relative_error[fine_tune] = {
            name: metrics[f"{name}/target_epe"] / metrics[f"{name}/target_epe_still"] for name in (shallow, deep)
        }
        unchanged = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert unchanged != fine_tune
    # The first endpoint of a random network passes its input on, a deep one must learn to.
    assert relative_error[False][shallow] < 0.5
    assert relative_error[True][shallow] < 0.5
    assert relative_error[False][deep] > 0.9
    assert relative_error[True][deep] < 0.6


def test_results_depend_on_the_seed_alone_and_cover_all_endpoints():
    clips = train_and_test_clips(4, 32, 16)
    (metrics, arrays), (same, _), (other, _) = (
        decoders.train_flow_decoders(
            s3dg(16, width=0.1),
            *clips,
            "rgb",
            dense_endpoint="Mixed_4f",
            epochs=1,
            batch_size=16,
            num_returned_clips=2,
            seed=seed,
        )
        for seed in (0, 0, 1)
    )
    assert metrics == same
    assert metrics != other
    names = (*decoders.ENDPOINTS, "dense")
    assert set(metrics) == {f"{name}/{m}" for name in names for m in ("epe", "target_epe", "target_epe_still")}
    assert arrays["dense"].shape == (2, 2, 4, 32, 32)
    assert arrays["frames"].tolist() == [0, 1, 1, 2]


def test_errors_of_zero_flow_by_hand():
    """Decoders that always predict zero flow err by the length of the true flow, over all cells and on the target."""
    _, test = train_and_test_clips(8, 16, 64)
    trainer = decoders._DecoderTrainer(
        s3dg(16, width=0.1), test, "rgb", dense_endpoint="Mixed_4f", fine_tune=False, batch_size=12
    )
    for decoder in trainer.decoders.values():
        torch.nn.init.zeros_(decoder.out.weight)
        torch.nn.init.zeros_(decoder.out.bias)
    errors = decoders._flow_errors(trainer, test, torch.arange(64))
    length, mask = test.true_flow.float().norm(dim=1).numpy(), test.mask.numpy()
    assert errors["dense/epe"] == pytest.approx(length.mean(), rel=1e-3)
    assert errors["dense/target_epe"] == pytest.approx(length[mask].mean(), rel=1e-3)
    flow = test.true_flow.float().unfold(2, 4, 4).unfold(3, 16, 16).unfold(4, 16, 16).mean((-1, -2, -3)).norm(dim=1)
    fraction = test.mask.float().unfold(1, 4, 4).unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2, -3))
    assert errors["Mixed_4f/epe"] == pytest.approx(flow.mean().item(), rel=1e-3)
    on_target = ((flow * fraction).sum() / fraction.sum()).item()
    assert errors["Mixed_4f/target_epe"] == pytest.approx(on_target, rel=1e-3)
    assert errors["Mixed_4f/target_epe"] == pytest.approx(errors["Mixed_4f/target_epe_still"], rel=1e-3)
    some = decoders._flow_errors(trainer, test, torch.tensor([3, 5]))
    assert some["dense/target_epe"] == pytest.approx(length[[3, 5]][mask[[3, 5]]].mean(), rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a step on a GPU")
def test_a_captured_step_learns_what_an_eager_step_learns():
    on_cpu, on_gpu = (
        decoders.train_flow_decoders(
            s3dg(16, width=0.25).to(device), *train_and_test_clips(8, 128, 128, device), "rgb",
            dense_endpoint="Mixed_4f", epochs=4, batch_size=32, fine_tune=True,
        )[0]
        for device in ("cpu", "cuda")
    )  # fmt: skip
    assert np.allclose([on_gpu[n] for n in on_cpu], list(on_cpu.values()), rtol=0.1)
