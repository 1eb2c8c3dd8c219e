"""The program on networks and films that the tests make, and on real clips where they are present."""

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


def pictures(frames, height=256, width=320):
    """A disc that drifts and reddens over a gradient: no frame comes twice."""
    y, x = np.mgrid[:height, :width] * 256 // height
    shown = []
    for i in range(frames):
        disc = (y - 60 - 2 * i) ** 2 + (x - 250 + 3 * i) ** 2 < 40**2
        shown.append(np.stack([np.where(disc, 250, i), x * 4 // 5, np.where(disc, 20, y)], -1))
    return np.array(shown, np.uint8)


def film(path, frames):
    path.write_bytes(encode(pictures(frames), fps=25))
    return path


def save(path, classes=CLASSES, **kwargs):
    """A network whose answer depends on what it sees: an untrained one passes next to nothing on."""
    model = s3dg(len(classes), width=0.25, **kwargs)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)):
        norm.momentum = None
    clip = torch.from_numpy(pictures(32, 96, 96)[..., : model.in_channels]).permute(3, 0, 1, 2)[None] / 255
    with torch.no_grad():
        model.train()(clip)
        model.Conv2d_0c_1x1.weight.mul_(10)
    save_checkpoint(path, model.eval(), stream="flow" if model.in_channels == 2 else "rgb", classes=classes)
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Several wait for each other where the machine is busy, and a clip then takes eight times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "rgb.safetensors")


@pytest.fixture(scope="module")
def dive(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "dive.mp4", 70)


@pytest.fixture(scope="module")
def swim(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film") / "swim.mp4", 40)


def reference(path, weights):
    """Probabilities by class: frames of 320 x 256 decoded one by one, resized by Pillow, seen by the plain network."""
    clip = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            bilinear = 2
            resized = torch.from_numpy(np.array(frame.to_image().resize((280, 224), bilinear)))
            clip.append(resized[:, 28:252].permute(2, 0, 1) / 255)
    clip = torch.stack([clip[i % len(clip)] for i in range(64)], 1)
    model, about = load_checkpoint(weights)
    with torch.no_grad():
        return dict(zip(about.classes, model(clip[None])[0].softmax(0).tolist(), strict=True))


def test_probabilities_are_those_of_the_first_64_frames(dive, weights):
    said = []
    found = predict(dive, weights, top=7, report=said.append)
    assert dict(found) == pytest.approx(reference(dive, weights), abs=1e-4)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    assert found[0][1] - found[-1][1] > 0.1
    assert not said


def test_a_short_film_is_looped_and_said_to_be(swim, weights, capsys):
    main([str(swim), "--weights", str(weights)])
    out, err = capsys.readouterr()
    assert err == f"{swim} has 40 of 64 frames and is looped\n"
    likeliest = sorted(reference(swim, weights).items(), key=lambda item: -item[1])[:5]
    lines = [line.split("  ") for line in out.splitlines()]
    assert [label for _, label in lines] == [label for label, _ in likeliest]
    assert [float(p) for p, _ in lines] == pytest.approx([p for _, p in likeliest], abs=1e-4)
    assert all(len(p) == len("0.1234") for p, _ in lines)


@pytest.mark.parametrize(("frames", "said"), [(1, ["1 of 64"]), (64, [])])
def test_a_still_film_is_not_taken_for_a_looped_one(tmp_path, weights, frames, said):
    path = tmp_path / "still.mp4"
    path.write_bytes(encode(np.full((frames, 32, 32, 3), 90, np.uint8), fps=25))
    told = []
    predict(path, weights, report=told.append)
    assert told == [f"{path} has {n} frames and is looped" for n in said]


def test_labels_replace_the_names_and_few_classes_give_few_lines(dive, tmp_path, capsys):
    weights = save(tmp_path / "three.safetensors", ("0", "1", "2"))
    labels = tmp_path / "labels.txt"
    labels.write_bytes("abseiling\r\nair drumming\r\nплавание\r\n\r\n".encode())
    names = dict(zip(("0", "1", "2"), ("abseiling", "air drumming", "плавание"), strict=True))
    main([str(dive), "--weights", str(weights)])
    plain = capsys.readouterr().out.splitlines()
    main([str(dive), "--weights", str(weights), "--labels", str(labels)])
    assert capsys.readouterr().out.splitlines() == [f"{line[:6]}  {names[line[8:]]}" for line in plain]
    assert sorted(line[8:] for line in plain) == ["0", "1", "2"]
    assert sum(float(line[:6]) for line in plain) == pytest.approx(1, abs=2e-4)


def refusal(capsys, *argv):
    """What the program says on its way out; nothing else is printed."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in argv])
    assert capsys.readouterr() == ("", "")
    assert "\n" not in left.value.code
    return left.value.code


def test_a_film_that_is_missing_or_damaged_is_named(dive, weights, tmp_path, capsys):
    assert "absent.mp4 cannot be opened as a video" in refusal(capsys, "absent.mp4", "--weights", weights)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(dive.read_bytes()[:-1000])
    assert str(cut) in refusal(capsys, cut, "--weights", weights)
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        predict(cut, weights)


def test_weights_of_another_kind_are_named_and_how_to_convert_them(dive, weights, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=rf"^no weights at .*absent: .*{COMMAND}"):
        predict(dive, tmp_path / "absent")
    tensorflow = tmp_path / "model.ckpt"
    tensorflow.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(ValueError, match=rf"model\.ckpt is no whole safetensors file.*{COMMAND}"):
        predict(dive, tensorflow)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match=rf"foreign\.safetensors is no checkpoint of this package.*{COMMAND}"):
        predict(dive, foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-100])
    for path in (tmp_path / "absent", tmp_path, tensorflow, foreign, cut):
        assert str(path) in refusal(capsys, dive, "--weights", path)


def test_a_flow_stream_is_refused(dive, tmp_path, capsys):
    flow = save(tmp_path / "flow.safetensors", in_channels=2)
    assert f"{flow} is a flow stream, this reads RGB" in refusal(capsys, dive, "--weights", flow)


def test_labels_that_do_not_fit_are_named(dive, weights, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    argv = (dive, "--weights", weights, "--labels", labels)
    assert refusal(capsys, *argv) == f"no labels at {labels}: give a text file of one label a line"
    labels.write_text("a\nb\nc\n")
    assert refusal(capsys, *argv) == (
        f"{labels} has 3 labels, the network 7 classes: give one label a line, in the order of the classes"
    )
    labels.write_bytes(b"\xff\xfe\x00a")
    assert f"{labels} is no UTF-8 text" in refusal(capsys, *argv)


def test_the_program_ends_with_1_and_one_sentence(weights):
    command = [sys.executable, "-m", "d3d", "predict", "absent.mp4", "--weights", str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "absent.mp4 cannot be opened as a video: No such file or directory\n"


def test_real_clips(real_clips, weights, capsys):
    """One of 48 frames, whose header says 49, and one that is long enough."""
    for name, said in [("TrumanShow_wave_f_nm_np1_fr_med_26.avi", 48), ("SOX5yA1l24A.mp4", 64)]:
        path = real_clips / name
        main([str(path), "--weights", str(weights)])
        out, err = capsys.readouterr()
        assert err == (f"{path} has {said} of 64 frames and is looped\n" if said < 64 else "")
        assert len(out.splitlines()) == 5
        assert {line[8:] for line in out.splitlines()} < set(CLASSES)
