"""Checkpoints of the original: every variable finds its place, the rest is named, and nothing is guessed."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import s3dg
from d3d.s3dg.weights import load_tf, main, tf_names
from tests.s3dg.reference import lively


def tf_variables(model, scope: str = "InceptionV1/") -> dict[str, np.ndarray]:
    """A network's tensors as TF-slim stores them: kernels (t, h, w, in, out)."""
    found = {}
    for name, tf in tf_names(model).items():
        tensor = model.state_dict()[name]
        tensor = tensor[..., None, None, None] if "transformer_W" in name else tensor
        found[scope + tf] = (tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor).numpy()
    return found


@pytest.fixture
def model():
    return lively(s3dg(7, in_channels=2, width=0.3)).eval()


def test_the_names_are_those_of_the_original(golden):
    for which, width, classes in (("full", 1.0, 400), ("small", 0.25, 10)):
        lines = (golden / f"variables_{which}.txt").read_text().splitlines()
        expected = dict(line.split("\t") for line in lines)
        with torch.device("meta"):
            model = s3dg(classes, width=width)
        names = tf_names(model)
        assert sorted(f"InceptionV1/{name}" for name in names.values()) == sorted(expected)
        for name, tf in names.items():
            assert model.state_dict()[name].numel() == np.prod(eval(expected[f"InceptionV1/{tf}"]))


@pytest.mark.parametrize("scope", ["InceptionV1/", "RGB/inception/", ""])
def test_a_network_comes_back_from_its_variables(model, scope, tmp_path, capsys):
    extra = {f"{scope}Conv2d_1a_7x7/weights/Momentum": np.zeros(3), "global_step": np.array(5)}
    np.savez(tmp_path / "net.npz", **tf_variables(model, scope), **extra)
    found = load_tf(tmp_path / "net.npz")
    assert (found.width, found.num_classes, found.in_channels, found.training) == (0.3, 7, 2, False)
    for name, tensor in found.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, model.state_dict()[name]), name
    said = capsys.readouterr().err
    assert "net.npz: 2 variables are not the network's and are left out: " in said
    assert "global_step" in said


@pytest.mark.parametrize("width", [0.1, 0.25, 0.35, 0.5, 0.75, 1.0])
def test_the_width_follows_from_the_shapes(width, tmp_path):
    model = s3dg(3, width=width)
    np.savez(tmp_path / "net.npz", **tf_variables(model))
    found = load_tf(tmp_path / "net.npz")
    assert {n: t.shape for n, t in found.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert found.width <= width


def test_the_converted_file_holds_the_same_bits(model, tmp_path, capsys):
    np.savez(tmp_path / "net.npz", **tf_variables(model))
    main([str(tmp_path / "net.npz"), str(tmp_path / "net.safetensors")])
    assert "S3D-G, 7 classes, 2 channels in, width 0.3" in capsys.readouterr().out
    found, about = load_checkpoint(tmp_path / "net.safetensors")
    assert about.stream == "flow"
    assert about.classes == tuple("0123456")
    clips = torch.rand(1, 2, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(clips), model(clips))


def without(name):
    return lambda v: v.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("InceptionV1/Mixed_4d/Branch_2/Conv2d_0b_3x3/temporal/biases"),
            "lacks InceptionV1/Mixed_4d/Branch_2/C",
        ),
        (
            without("InceptionV1/Conv2d_1a_7x7/weights"),
            r"is no S3D-G: it has no variable …/Conv2d_1a_7x7/weights, but ",
        ),
        (
            without("InceptionV1/Logits/Conv2d_0c_1x1/weights"),
            "no variable InceptionV1/Logits/Conv2d_0c_1x1/weights",
        ),
        (
            lambda v: v.update({"InceptionV1/Mixed_3b/Branch_0/Conv2d_0a_1x1/BatchNorm/beta": np.zeros(5, np.float32)}),
            r"Mixed_3b/Branch_0/Conv2d_0a_1x1/BatchNorm/beta has shape \(5,\), this network needs \(19,\)",
        ),
        (
            lambda v: v.update({"InceptionV1/Conv2d_1a_7x7/weights": np.zeros(5)}),
            r"InceptionV1/Conv2d_1a_7x7/weights has shape \(5,\), not \(t, h, w, in, out\)",
        ),
        (
            lambda v: v.update({"Flow/Conv2d_1a_7x7/weights": v["InceptionV1/Conv2d_1a_7x7/weights"]}),
            r"holds several networks \(Flow/, InceptionV1/\)",
        ),
        (
            lambda v: v.update({"InceptionV1/Mixed_5c/Branch_0/Conv2d_0a_1x1/weights": np.zeros((1, 1, 1, 249, 384))}),
            "has numbers of channels that no width",
        ),
    ],
)
def test_what_is_wrong_is_named(change, message, model, tmp_path):
    variables = tf_variables(model)
    change(variables)
    np.savez(tmp_path / "net.npz", **variables)
    with pytest.raises(ValueError, match=message):
        load_tf(tmp_path / "net.npz")


def test_files_that_cannot_be_read_are_named(tmp_path, capsys):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for source, message in {
        tmp_path / "cut.npz": "cut.npz is no whole .npz file of arrays",
        tmp_path / "none.npz": "no file ",
        tmp_path / "model.ckpt": "no TensorFlow checkpoint at ",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([str(source), str(tmp_path / "out.safetensors")])
        assert message in stopped.value.code
        assert "\n" not in stopped.value.code
    assert not (tmp_path / "out.safetensors").exists()


def test_the_real_checkpoint_through_tensorflow(golden, tmp_path):
    pytest.importorskip("tensorflow", reason="tensorflow is an optional extra", exc_type=ImportError)
    out = tmp_path / "net.safetensors"
    # A process of its own: TensorFlow brings warnings and threads along.
    command = [sys.executable, "-m", "d3d", "convert", str(golden / "model.ckpt"), str(out)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "S3D-G, 10 classes, 3 channels in, width 0.25" in said
    want, (found, _) = load_tf(golden / "small_weights.npz"), load_checkpoint(out)
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, want.state_dict()[name]), name
