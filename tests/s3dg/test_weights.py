"""Import of TF-slim's checkpoints: names, shapes and values are the original's, and anything wrong is an error."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import s3dg
from d3d.s3dg.weights import load_tf, main, tf_names
from tests.s3dg.reference import randomize


def tf_variables(model, scope: str = "InceptionV1/") -> dict[str, np.ndarray]:
    """The network's tensors as TF-slim stores them, by name: kernels (t, h, w, in, out)."""
    variables = {}
    for name, tf in tf_names(model).items():
        tensor = model.state_dict()[name]
        tensor = tensor[..., None, None, None] if "transformer_W" in name else tensor
        variables[scope + tf] = (tensor.permute(2, 3, 4, 1, 0) if tensor.ndim == 5 else tensor).numpy()
    return variables


@pytest.fixture
def model():
    return randomize(s3dg(7, in_channels=2, width=0.3)).eval()


def test_names_and_sizes_are_the_originals(golden):
    for size, width, classes in (("full", 1.0, 400), ("small", 0.25, 10)):
        lines = (golden / f"variables_{size}.txt").read_text().splitlines()
        expected = dict(line.split("\t") for line in lines)
        with torch.device("meta"):
            model = s3dg(classes, width=width)
        names = tf_names(model)
        assert sorted(f"InceptionV1/{name}" for name in names.values()) == sorted(expected)
        for name, tf in names.items():
            assert model.state_dict()[name].numel() == np.prod(eval(expected[f"InceptionV1/{tf}"]))


@pytest.mark.parametrize("scope", ["InceptionV1/", "RGB/inception/", ""])
def test_load_tf_restores_a_network_from_its_variables(model, scope, tmp_path, capsys):
    extra = {f"{scope}Conv2d_1a_7x7/weights/Momentum": np.zeros(3), "global_step": np.array(5)}
    np.savez(tmp_path / "net.npz", **tf_variables(model, scope), **extra)
    loaded = load_tf(tmp_path / "net.npz")
    assert (loaded.width, loaded.num_classes, loaded.in_channels, loaded.training) == (0.3, 7, 2, False)
    for name, tensor in loaded.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, model.state_dict()[name]), name
    err = capsys.readouterr().err
    assert "net.npz: ignored 2 variables that are not the network's: " in err
    assert "global_step" in err


@pytest.mark.parametrize("width", [0.1, 0.25, 0.35, 0.5, 0.75, 1.0])
def test_the_width_is_inferred_from_the_shapes(width, tmp_path):
    model = s3dg(3, width=width)
    np.savez(tmp_path / "net.npz", **tf_variables(model))
    loaded = load_tf(tmp_path / "net.npz")
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert loaded.width <= width


def test_convert_keeps_every_bit(model, tmp_path, capsys):
    np.savez(tmp_path / "net.npz", **tf_variables(model))
    main([str(tmp_path / "net.npz"), str(tmp_path / "net.safetensors")])
    assert "S3D-G, 7 classes, 2 input channels, width 0.3" in capsys.readouterr().out
    loaded, info = load_checkpoint(tmp_path / "net.safetensors")
    assert info.stream == "flow"
    assert info.classes == tuple("0123456")
    clips = torch.rand(1, 2, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(clips), model(clips))


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
            r"is not an S3D-G: it has no variable …/Conv2d_1a_7x7/weights, but ",
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
            r"has several networks \(Flow/, InceptionV1/\)",
        ),
        (
            lambda v: v.update({"InceptionV1/Mixed_5c/Branch_0/Conv2d_0a_1x1/weights": np.zeros((1, 1, 1, 249, 384))}),
            "has channel counts that no width",
        ),
    ],
)
def test_wrong_variables_are_errors_that_name_them(change, message, model, tmp_path):
    variables = tf_variables(model)
    change(variables)
    np.savez(tmp_path / "net.npz", **variables)
    with pytest.raises(ValueError, match=message):
        load_tf(tmp_path / "net.npz")


def test_unreadable_files_are_errors_that_name_them(tmp_path, capsys):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for source, message in {
        tmp_path / "cut.npz": "cut.npz is not a complete .npz file of arrays",
        tmp_path / "none.npz": "no file ",
        tmp_path / "model.ckpt": "no TensorFlow checkpoint at ",
    }.items():
        with pytest.raises(SystemExit) as error:
            main([str(source), str(tmp_path / "out.safetensors")])
        assert message in error.value.code
        assert "\n" not in error.value.code
    assert not (tmp_path / "out.safetensors").exists()


def test_the_real_checkpoint_through_tensorflow(golden, tmp_path):
    pytest.importorskip("tensorflow", reason="tensorflow is an optional extra", exc_type=ImportError)
    path = tmp_path / "net.safetensors"
    # In a separate process, because TensorFlow starts threads and changes warnings.
    command = [sys.executable, "-m", "d3d", "convert", str(golden / "model.ckpt"), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "S3D-G, 10 classes, 3 input channels, width 0.25" in output
    expected, (converted, _) = load_tf(golden / "small_weights.npz"), load_checkpoint(path)
    for name, tensor in converted.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
