"""`d3d predict` on generated videos and networks, and on real clips if they are present."""

import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from d3d.s3dg.checkpoints import load_checkpoint, save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.s3dg.predict import main, predict
from d3d.video.decode import VideoError, encode

CLASSES = ("run", "swim", "dive", "throw", "catch", "kick", "wave")
COMMAND = r"d3d convert CKPT OUT\.safetensors"


def render(frames, height=256, width=320):
    """A disc that moves and reddens over a gradient: every frame differs."""
    y, x = np.mgrid[:height, :width] * 256 // height
    images = []
    for i in range(frames):
        disc = (y - 60 - 2 * i) ** 2 + (x - 250 + 3 * i) ** 2 < 40**2
        images.append(np.stack([np.where(disc, 250, i), x * 4 // 5, np.where(disc, 20, y)], -1))
    return np.array(images, np.uint8)


def save_video(path, frames):
    path.write_bytes(encode(render(frames), fps=25))
    return path


def save_network(path, classes=CLASSES, **kwargs):
    """Saves a network whose logits depend on the video; those of untrained weights hardly do."""
    model = s3dg(len(classes), width=0.25, **kwargs)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.momentum = None
    clip = torch.from_numpy(render(32, 96, 96)[..., : model.in_channels]).permute(3, 0, 1, 2)[None] / 255
    with torch.no_grad():
        model.train()(clip)
        model.Conv2d_0c_1x1.weight.mul_(10)
    save_checkpoint(path, model.eval(), stream="flow" if model.in_channels == 2 else "rgb", classes=classes)
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On a busy machine threads wait for each other, and a clip takes eight times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("weights") / "rgb.safetensors")


@pytest.fixture(scope="module")
def dive(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("videos") / "dive.mp4", 70)


@pytest.fixture(scope="module")
def swim(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("videos") / "swim.mp4", 40)


def reference(path, weights):
    """Probabilities by class: frames of 320 x 256 decoded by PyAV, resized by Pillow, classified without folding."""
    clip = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            bilinear = 2
            resized = torch.from_numpy(np.array(frame.to_image().resize((280, 224), bilinear)))
            clip.append(resized[:, 28:252].permute(2, 0, 1) / 255)
    clip = torch.stack([clip[i % len(clip)] for i in range(64)], 1)
    model, info = load_checkpoint(weights)
    with torch.no_grad():
        return dict(zip(info.classes, model(clip[None])[0].softmax(0).tolist(), strict=True))


def test_probabilities_are_those_of_the_first_64_frames(dive, weights):
    messages = []
    predictions = predict(dive, weights, top=7, report=messages.append)
    assert dict(predictions) == pytest.approx(reference(dive, weights), abs=1e-4)
    assert [p for _, p in predictions] == sorted((p for _, p in predictions), reverse=True)
    assert predictions[0][1] - predictions[-1][1] > 0.1
    assert not messages


def test_a_short_video_is_looped_and_reported(swim, weights, capsys):
    main([str(swim), "--weights", str(weights)])
    out, err = capsys.readouterr()
    assert err == f"{swim} has 40 of 64 frames and is looped\n"
    expected = sorted(reference(swim, weights).items(), key=lambda item: -item[1])[:5]
    lines = [line.split("  ") for line in out.splitlines()]
    assert [label for _, label in lines] == [label for label, _ in expected]
    assert [float(p) for p, _ in lines] == pytest.approx([p for _, p in expected], abs=1e-4)
    assert all(len(p) == len("0.1234") for p, _ in lines)


@pytest.mark.parametrize(("frames", "reported"), [(1, ["1 of 64"]), (64, [])])
def test_a_still_video_of_64_frames_is_not_reported_as_looped(tmp_path, weights, frames, reported):
    path = tmp_path / "still.mp4"
    path.write_bytes(encode(np.full((frames, 32, 32, 3), 90, np.uint8), fps=25))
    messages = []
    predict(path, weights, report=messages.append)
    assert messages == [f"{path} has {n} frames and is looped" for n in reported]


def test_labels_replace_the_class_names_and_few_classes_give_few_lines(dive, tmp_path, capsys):
    weights = save_network(tmp_path / "three.safetensors", ("0", "1", "2"))
    labels = tmp_path / "labels.txt"
    labels.write_bytes("abseiling\r\nair drumming\r\nплавание\r\n\r\n".encode())
    names = dict(zip(("0", "1", "2"), ("abseiling", "air drumming", "плавание"), strict=True))
    main([str(dive), "--weights", str(weights)])
    lines = capsys.readouterr().out.splitlines()
    main([str(dive), "--weights", str(weights), "--labels", str(labels)])
    assert capsys.readouterr().out.splitlines() == [f"{line[:6]}  {names[line[8:]]}" for line in lines]
    assert sorted(line[8:] for line in lines) == ["0", "1", "2"]
    assert sum(float(line[:6]) for line in lines) == pytest.approx(1, abs=2e-4)


def test_what_is_printed_is_printable(dive, tmp_path, capsys):
    weights = save_network(tmp_path / "hostile.safetensors", ("\x1b[31mred", "\ud800", "a\nb"))
    main([str(dive), "--weights", str(weights)])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[8:] for line in lines) == [r"\ud800", r"\x1b[31mred", r"a\nb"]
    labels = tmp_path / "labels.txt"
    labels.write_text("\x1b]0;title\x07\nplain\n\u202eright to left\n", encoding="utf-8")
    main([str(dive), "--weights", str(weights), "--labels", str(labels)])
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[8:] for line in lines) == [r"\u202eright to left", r"\x1b]0;title\x07", "plain"]


def test_finite_weights_whose_probabilities_are_not_finite_are_an_error(dive, tmp_path, capsys):
    model = s3dg(3, width=0.1)
    with torch.no_grad():
        model.Conv2d_0c_1x1.weight.fill_(3e38)
        model.Conv2d_0c_1x1.bias.fill_(3e38)
    save_checkpoint(tmp_path / "large.safetensors", model, stream="rgb", classes=("a", "b", "c"))
    message = error_of(capsys, dive, "--weights", tmp_path / "large.safetensors")
    assert message.endswith("are not finite; give the weights of a trained network")


def error_of(capsys, *argv):
    """The error message, of one line, with which the command exits; checks that it prints nothing else."""
    with pytest.raises(SystemExit) as error:
        main([str(word) for word in argv])
    assert capsys.readouterr() == ("", "")
    assert "\n" not in error.value.code
    return error.value.code


def test_missing_and_damaged_videos_are_errors(dive, weights, tmp_path, capsys):
    assert "absent.mp4 cannot be opened as a video" in error_of(capsys, "absent.mp4", "--weights", weights)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(dive.read_bytes()[:-1000])
    assert str(cut) in error_of(capsys, cut, "--weights", weights)
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        predict(cut, weights)


def test_other_weights_are_errors_that_say_how_to_convert_them(dive, weights, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=rf"^no weights at .*absent: .*{COMMAND}"):
        predict(dive, tmp_path / "absent")
    tensorflow = tmp_path / "model.ckpt"
    tensorflow.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(ValueError, match=rf"model\.ckpt is not a complete safetensors file.*{COMMAND}"):
        predict(dive, tensorflow)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=rf"foreign\.safetensors is not a checkpoint of this package.*{COMMAND}"):
        predict(dive, foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    for path in (tmp_path / "absent", tmp_path, tensorflow, foreign, cut):
        assert str(path) in error_of(capsys, dive, "--weights", path)


def test_weights_of_a_flow_stream_are_an_error(dive, tmp_path, capsys):
    flow = save_network(tmp_path / "flow.safetensors", in_channels=2)
    assert f"{flow} is a flow stream: give the weights of an RGB stream" in error_of(capsys, dive, "--weights", flow)


def test_missing_and_wrong_labels_are_errors(dive, weights, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    argv = (dive, "--weights", weights, "--labels", labels)
    assert error_of(capsys, *argv) == f"no labels at {labels}: give a text file with one label per line"
    labels.write_text("a\nb\nc\n")
    assert error_of(capsys, *argv) == (
        f"{labels} has 3 labels, the network 7 classes: give one label per line, in the order of the classes"
    )
    labels.write_bytes(b"\xff\xfe\x00a")
    assert f"{labels} is not UTF-8 text" in error_of(capsys, *argv)


def test_the_command_exits_with_1_and_one_sentence(weights):
    command = [sys.executable, "-m", "d3d", "predict", "absent.mp4", "--weights", str(weights)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "absent.mp4 cannot be opened as a video: No such file or directory\n"


def test_real_clips(real_clips, weights, capsys):
    """One of 48 frames, whose header says 49, and one of more than 64."""
    for name, frames in [("TrumanShow_wave_f_nm_np1_fr_med_26.avi", 48), ("SOX5yA1l24A.mp4", 64)]:
        path = real_clips / name
        main([str(path), "--weights", str(weights)])
        out, err = capsys.readouterr()
        assert err == (f"{path} has {frames} of 64 frames and is looped\n" if frames < 64 else "")
        assert len(out.splitlines()) == 5
        assert {line[8:] for line in out.splitlines()} < set(CLASSES)
