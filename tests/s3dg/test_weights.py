"""Import of TF-slim's checkpoints: names, shapes and values are the original's, and anything wrong is an error."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import s3dg
from d3d.s3dg.weights import load_tf, main, tf_names
from tests.s3dg.reference import randomize, tf_variables


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


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_weights_of_other_types_are_converted(dtype, model, tmp_path):
    variables = {name: array.astype(dtype) for name, array in tf_variables(model).items()}
    np.savez(tmp_path / "net.npz", **variables)
    expected = {name: torch.from_numpy(array.astype(np.float32)) for name, array in variables.items()}
    loaded = tf_variables(load_tf(tmp_path / "net.npz"))
    assert all(torch.equal(torch.from_numpy(loaded[name]), array) for name, array in expected.items())


def test_only_the_variables_of_the_network_are_read(model, tmp_path):
    """The optimiser's slots are as large as the weights, and their damage does not matter."""
    slots = {f"{name}/Momentum": array for name, array in tf_variables(model).items()}
    marker = np.frombuffer(b"the weights' slot" * 1000, np.uint8)
    np.savez(tmp_path / "net.npz", **tf_variables(model), **slots, slot=marker)
    content = (tmp_path / "net.npz").read_bytes()
    (tmp_path / "net.npz").write_bytes(content.replace(marker.tobytes(), b"x" * len(marker)))
    loaded = load_tf(tmp_path / "net.npz")
    assert torch.equal(loaded.Conv2d_0c_1x1.weight, model.Conv2d_0c_1x1.weight)


def test_convert_makes_missing_folders(model, tmp_path):
    np.savez(tmp_path / "net.npz", **tf_variables(model))
    main([str(tmp_path / "net.npz"), str(tmp_path / "a/b/net.safetensors")])
    assert load_checkpoint(tmp_path / "a/b/net.safetensors")[0].num_classes == 7


class Reader:
    """TensorFlow's reader of a checkpoint, of arrays in memory; records which variables are read."""

    def __init__(self, variables):
        self.variables, self.names = variables, []

    def get_variable_to_shape_map(self):
        return {name: list(array.shape) for name, array in self.variables.items()}

    def get_variable_to_dtype_map(self):
        return {name: SimpleNamespace(as_numpy_dtype=array.dtype.type) for name, array in self.variables.items()}

    def get_tensor(self, name):
        self.names.append(name)
        return self.variables[name]


class OpError(Exception):
    message = "Checksum does not match:\x1b[31m stored 1 vs. calculated 2"


@pytest.fixture
def reader(model, monkeypatch, tmp_path):
    """Stands in for tensorflow, which is not needed to test what is done with its answers."""
    reader = Reader(tf_variables(model) | {"global_step": np.array(3), "names": np.array(["a"], object)})
    module = SimpleNamespace(
        train=SimpleNamespace(load_checkpoint=lambda path: reader), errors=SimpleNamespace(OpError=OpError)
    )
    monkeypatch.setitem(sys.modules, "tensorflow", module)
    (tmp_path / "model.ckpt.index").touch()
    return reader


def test_only_the_network_s_variables_of_a_tensorflow_checkpoint_are_read(reader, model, tmp_path):
    loaded = load_tf(tmp_path / "model.ckpt")
    assert torch.equal(loaded.Conv2d_0c_1x1.weight, model.Conv2d_0c_1x1.weight)
    assert sorted(reader.names) == sorted(reader.variables.keys() - {"global_step", "names"})


def test_shapes_of_a_tensorflow_checkpoint_are_checked_before_values(reader, tmp_path):
    reader.variables["InceptionV1/Logits/Conv2d_0c_1x1/weights"] = np.broadcast_to(
        np.float32(0), (1, 1, 1, 1024, 10**9)
    )
    with pytest.raises(ValueError, match=r"model\.ckpt is not an S3D-G: num_classes must be .*, not 1000000000"):
        load_tf(tmp_path / "model.ckpt")
    assert reader.names == []


def test_a_damaged_tensorflow_checkpoint_is_an_error_of_one_line(reader, monkeypatch, tmp_path):
    def fail(name):
        raise OpError

    monkeypatch.setattr(reader, "get_tensor", fail)
    with pytest.raises(
        ValueError, match=r"model\.ckpt is not a complete TensorFlow checkpoint: Checksum does not match:\\x1b\[31m "
    ):
        load_tf(tmp_path / "model.ckpt")
