"""Files of weights and labels: damaged, hostile, too large, not finite or of something else."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d3d.s3dg.checkpoints import NETWORK_FORMAT, to_safetensors
from d3d.s3dg.network import S3DG, s3dg
from d3d.video.decode import encode
from tests.bad_inputs.harness import BadInput, assert_refused
from tests.s3dg.reference import tf_variables

Write = Callable[[Path], None]
SCOPE = "InceptionV1/"
STEM, HEAD = f"{SCOPE}Conv2d_1a_7x7/weights", f"{SCOPE}Logits/Conv2d_0c_1x1/weights"
STEM_SHAPE = (3, 7, 7, 3, 16)
# Offsets of the fields of a zip member, in its own header and in the directory.
FLAGS, METHOD, UNPACKED_SIZE = (6, 8), (8, 10), (22, 24)
STEM_TENSOR, HEAD_TENSOR = "features.Conv2d_1a_7x7.conv.weight", "Conv2d_0c_1x1.weight"


@cache
def network(in_channels: int = 3) -> S3DG:
    return s3dg(3, in_channels=in_channels, width=0.1)


# --- .npz files ---


def npz(**changes: Callable[[], np.ndarray] | None) -> Write:
    """Writes net.npz, a network's variables of which some are replaced or, by None, left out; `stem` is the first."""

    def write(folder: Path) -> None:
        variables = tf_variables(network())
        for name, make in changes.items():
            name = {"stem": STEM, "head": HEAD}.get(name, name)
            if make:
                variables[name] = make()
            else:
                del variables[name]
        np.savez(folder / "net.npz", **variables)

    return write


def content(data: bytes, name: str = "net.npz") -> Write:
    return lambda folder: (folder / name).write_bytes(data)


def packed(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """An .npy file with a header of any content, of a claimed length."""
    length = len(header) if length is None else length
    return (
        b"\x93NUMPY"
        + struct.pack("<BB" + {1: "H", 2: "I", 3: "I", 9: "I"}[version], version, 0, length)
        + (header.encode() + data)
    )


def stem_header(shape: Any = STEM_SHAPE, descr: Any = "<f4") -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n"


def member(data: bytes, name: str = f"{STEM}.npy") -> Write:
    return content(zipped({name: data}))


def patched(archive: bytes, fields: Mapping[tuple[int, int], tuple[str, int]]) -> bytes:
    """Changes fields of the first member, in its own header and in the directory."""
    data, directory = bytearray(archive), archive.find(b"PK\x01\x02")
    for (own, listed), (kind, value) in fields.items():
        struct.pack_into(kind, data, own, value)
        struct.pack_into(kind, data, directory + listed, value)
    return bytes(data)


def bomb(name: str, shape: tuple[int, ...]) -> Write:
    """A network with a variable of zeros, gigabytes of them, in a thousandth of their size."""

    def write(folder: Path) -> None:
        header = npy(stem_header(shape))
        block, count = 2**26, 4 * int(np.prod(shape))
        assert count % block == 0
        packer = zlib.compressobj(wbits=-15)
        start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
        zeros = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
        archive = zipped({f"{name}.npy": start + zeros * (count // block) + packer.flush()})
        data = patched(archive, {METHOD: ("<H", 8), UNPACKED_SIZE: ("<I", len(header) + count)})
        (folder / "net.npz").write_bytes(data)
        with zipfile.ZipFile(folder / "net.npz", "a") as file:
            for other, array in tf_variables(network()).items():
                if other != name:
                    with file.open(f"{other}.npy", "w") as entry:
                        np.lib.format.write_array(entry, array)

    return write


def duplicated() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(stem_header((), "<f4"), bytes(4)))
        archive.writestr("b.npy", npy(stem_header((), "<f4"), bytes(4)))
    return file.getvalue().replace(b"b.npy", b"a.npy")


def damaged(position: int, count: int) -> bytes:
    """A compressed stem of which some bytes are others."""
    noise = np.random.default_rng(0)
    data = bytearray(packed(**{STEM: noise.normal(size=STEM_SHAPE).astype("f4")}))
    data[position : position + count] = noise.bytes(count)
    return bytes(data)


def damaged_data(folder: Path) -> None:
    """A whole network, compressed, the data of whose stem is damaged."""
    noise = np.random.default_rng(0)
    variables = tf_variables(network())
    stem = {STEM: noise.normal(size=STEM_SHAPE).astype("f4")}
    data = bytearray(packed(**stem, **{name: array for name, array in variables.items() if name != STEM}))
    data[5000:5200] = noise.bytes(200)
    (folder / "net.npz").write_bytes(data)


def flipped_data(folder: Path) -> None:
    """A whole network, uncompressed, with one other bit in its stem."""
    npz()(folder)
    data = bytearray((folder / "net.npz").read_bytes())
    data[data.index(f"{STEM}.npy".encode()) + 1000] ^= 1
    (folder / "net.npz").write_bytes(data)


WHOLE_NPZ = packed(**{STEM: np.zeros(STEM_SHAPE, np.float32)})
STORED_STEM = zipped({f"{STEM}.npy": npy(stem_header(), bytes(4 * int(np.prod(STEM_SHAPE))))})
CONVERT = ["convert", "net.npz", "out.safetensors"]
NO_NPZ = r"net\.npz is not a complete \.npz file of arrays: {}"
QUOTED_STEM = rf"'{STEM}'"
BAD_HEADER = NO_NPZ.format(f"the header of {QUOTED_STEM} is damaged")
BAD_SIZE = NO_NPZ.format(f"{QUOTED_STEM} has another size than its shape .* needs")
NO_ZIP = NO_NPZ.format("it is no zip archive, or its end is missing or damaged")
NOT_FINITE = rf"net\.npz: {STEM} has values that are not finite in float32: .*"


def npz_case(name: str, write: Write | None, message: str) -> BadInput:
    return BadInput(f"npz: {name}", CONVERT, write, message)


def stem(value: float, dtype: Any = np.float32) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = np.zeros(STEM_SHAPE, dtype)
        array[1, 2, 3, 1, 5] = value
        return array

    return make


def zeros(*shape: int) -> Callable[[], np.ndarray]:
    return lambda: np.zeros(shape, np.float32)


NPZ_CASES = [
    npz_case("missing", None, r"no file net\.npz"),
    npz_case("folder", lambda folder: (folder / "net.npz").mkdir(), r"net\.npz is a folder: give .*"),
    npz_case("link loop", lambda folder: (folder / "net.npz").symlink_to("net.npz"), r"no file net\.npz"),
    npz_case("empty", content(b""), NO_ZIP),
    npz_case("text", content(b"weights\n" * 100), NO_ZIP),
    npz_case("cut", content(WHOLE_NPZ[: len(WHOLE_NPZ) // 2]), NO_ZIP),
    npz_case("directory damaged", content(WHOLE_NPZ.replace(b"PK\x01\x02", b"PK\x09\x09")), NO_ZIP),
    npz_case("variable missing", npz(stem=None), r"net\.npz is not an S3D-G: it has no variable …/.*, but .*"),
    npz_case("data damaged", damaged_data, rf"net\.npz is not a complete .*: {QUOTED_STEM} is damaged"),
    npz_case("data flipped", flipped_data, rf"net\.npz is not a complete .*: {QUOTED_STEM} is damaged"),
    npz_case("header damaged", content(damaged(70, 60)), BAD_HEADER),
    npz_case("unknown packing", content(patched(STORED_STEM, {METHOD: ("<H", 99)})), NO_NPZ.format(".* method 99, .*")),
    npz_case("bzip2", content(zipped({"a.npy": b"x"}, zipfile.ZIP_BZIP2)), NO_NPZ.format(".* method 12, which .*")),
    npz_case("encrypted", content(patched(STORED_STEM, {FLAGS: ("<H", 1)})), NO_NPZ.format(".* is encrypted")),
    npz_case("no magic string", member(b"weights"), BAD_HEADER),
    npz_case("empty member", member(b""), BAD_HEADER),
    npz_case("version of 3", member(npy(stem_header(), version=3)), BAD_HEADER),
    npz_case("version of 9", member(npy(stem_header(), version=9)), BAD_HEADER),
    npz_case("header of 4 GB", member(npy("", b" " * 20_000, 2, 2**32 - 1)), BAD_HEADER),
    npz_case("header of 60 kB", member(npy(stem_header() + " " * 60_000)), BAD_HEADER),
    npz_case("header that is no literal", member(npy("{'descr': ((('<f4'\n")), BAD_HEADER),
    npz_case("header that calls", member(npy(stem_header("__import__('os').getcwd()"))), BAD_HEADER),
    npz_case("header nested deep", member(npy("(" * 9000 + "\n")), BAD_HEADER),
    npz_case("header with long number", member(npy(stem_header(f"({'9' * 5000},)"))), BAD_HEADER),
    npz_case("unknown type", member(npy(stem_header(descr="<q9"))), BAD_HEADER),
    npz_case("negative shape", member(npy(stem_header((-1, -1)), bytes(4))), BAD_HEADER),
    npz_case("shape of 10^13", member(npy(stem_header((10**13,)), bytes(100))), BAD_SIZE),
    npz_case("shape of 2^70", member(npy(stem_header((2**70,)), bytes(100))), BAD_SIZE),
    npz_case("data too short", member(npy(stem_header(), bytes(100))), BAD_SIZE),
    npz_case("data too long", member(npy(stem_header((1,)), bytes(100))), BAD_SIZE),
    npz_case(
        "size that no packing gives",
        content(patched(zipped({f"{STEM}.npy": npy(stem_header((2**29,)))}, zipfile.ZIP_DEFLATED),
                        {UNPACKED_SIZE: ("<I", 2**31 + len(npy(stem_header((2**29,)))))})),
        BAD_SIZE,
    ),
    npz_case("bomb of 4 GB as classes", bomb(HEAD, (1, 1, 1, 1024, 15 * 2**16)), r"net\.npz .*: num_classes must .*"),
    npz_case("bomb of 4 GB as channels", bomb(STEM, (3, 5, 2**20, 4, 16)), r"net\.npz: .* this network needs .*"),
    npz_case("Python objects", npz(a=lambda: np.array([None])), NO_NPZ.format("'a' holds Python objects, .*")),
    npz_case("a name twice", content(duplicated()), NO_NPZ.format("'a' is in it twice")),
    npz_case("name that leads out", member(b"", "../a.npy"), NO_NPZ.format(r"'\.\./a\.npy' is no name of an array")),
    npz_case("absolute name", member(b"", "/a.npy"), NO_NPZ.format(r"'/a\.npy' is no name of an array")),
    npz_case("no array", member(b"", "a.txt"), NO_NPZ.format(r"'a\.txt' is no name of an array")),
    npz_case("name with escapes", member(b"", "\x1b[31m.npy"), NO_NPZ.format(r".*\\x1b\[31m' is damaged")),
    npz_case("other variables", content(packed(**{"\x1b]0;x\x07": np.zeros(2)})), r"net\.npz is not an S3D-G: .*"),
    npz_case("nan", npz(stem=stem(np.nan)), NOT_FINITE),
    npz_case("inf", npz(stem=stem(-np.inf)), NOT_FINITE),
    npz_case("beyond float32", npz(stem=stem(1e300, np.float64)), NOT_FINITE),
    npz_case("complex numbers", npz(stem=stem(0, complex)), rf"net\.npz: {STEM} has type complex128, not numbers"),
    npz_case("text as weights", npz(stem=stem(0, "U1")), rf"net\.npz: {STEM} has type <U1, not numbers"),
    npz_case("no classes", npz(head=zeros(1, 1, 1, 144, 0)), r"net\.npz is not an S3D-G: num_classes must be .* 0"),
    npz_case("five channels", npz(stem=zeros(3, 7, 7, 5, 16)), r"net\.npz takes 5 channels: streams take 3 .*"),
    npz_case("two dimensions", npz(head=zeros(144, 3)), rf"net\.npz: {HEAD} has shape \(144, 3\), not .*"),
]  # fmt: skip


# --- where to write ---


def file_in_place_of_folder(folder: Path) -> None:
    npz()(folder)
    (folder / "file").touch()


def convert_to(name: str, out: str, write: Write, message: str, source: str = "net.npz") -> BadInput:
    return BadInput(f"convert: {name}", ["convert", source, out], write, message)


CONVERT_CASES = [
    convert_to("out is a folder", ".", npz(), r"\. is a folder: give the name of the safetensors file to write"),
    convert_to("out is the source", "./net.npz", npz(), r"net\.npz is the file to convert: give another name .*"),
    convert_to("out below a file", "file/a/out", file_in_place_of_folder, r"file/a/out could not be written .*"),
    convert_to("out cannot be made", "/proc/none/out", npz(), r"/proc/none/out could not be written .*"),
    convert_to("no TensorFlow checkpoint", "out", npz(), r"no TensorFlow checkpoint at model\.ckpt: .*", "model.ckpt"),
    convert_to("folder", "out", npz(), r"no TensorFlow checkpoint at \.: give its prefix, .*", "."),
    convert_to("name with escapes", "out", npz(), r"no TensorFlow checkpoint at \\x1b\[31ma\\nb: .*", "\x1b[31ma\nb"),
    convert_to("long name", "out", npz(), r".*File name too long.*", "a" * 5000 + ".npz"),
]


# --- checkpoints ---

FORMAT = {"format": NETWORK_FORMAT}
ABOUT = {"stream": "rgb", "classes": ["a", "b", "c"], "width": 0.1, "in_channels": 3, "input": {}}


def checkpoint(
    change: Callable[[dict[str, torch.Tensor]], Any] | None = None, channels: int = 3, **about: Any
) -> Write:
    """Writes net.safetensors, its tensors changed and fields of its description replaced, with the right checksum."""

    def write(folder: Path) -> None:
        state = dict(network(channels).state_dict())
        if change:
            change(state)
        info = {name: value for name, value in (ABOUT | about).items() if value is not None}
        (folder / "net.safetensors").write_bytes(to_safetensors(NETWORK_FORMAT, state, info))

    return write


def put(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """Replaces the first value of a tensor."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state[name] = state[name].clone(memory_format=torch.contiguous_format)
        state[name].view(-1)[0] = value

    return change


def safetensors(header: str | bytes, size: int = 0) -> Write:
    """Writes net.safetensors with any header and `size` bytes of zeros, which take no space on the disk."""

    def write(folder: Path) -> None:
        encoded = header.encode() if isinstance(header, str) else header
        with (folder / "net.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + size)

    return write


def described(about: str, shape: tuple[int, ...] = (1,), size: int = 4) -> Write:
    """Writes net.safetensors with any metadata and one tensor, the first of the network."""
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    return safetensors(json.dumps({"__metadata__": {"about": about}, STEM_TENSOR: tensor}), size)


def cut(folder: Path) -> None:
    checkpoint()(folder)
    os.truncate(folder / "net.safetensors", 100_000)


def pickled(folder: Path) -> None:
    torch.save(network().state_dict(), folder / "net.safetensors")


def replace_head(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state.update({HEAD_TENSOR: change(state[HEAD_TENSOR])})


def weights_case(name: str, write: Write | None, message: str) -> BadInput:
    command = ["predict", "absent.mp4", "--weights", "net.safetensors"]
    hint = r"; `d3d convert CKPT OUT\.safetensors` makes one from a TensorFlow checkpoint"
    return BadInput(f"weights: {name}", command, write, rf"net\.safetensors {message}{hint}")


def describes(name: str, rest: str) -> str:
    return rf"does not describe a network: {name} must be {rest}"


WIDTH_RANGE = r"does not describe a network: width must be positive and at most 8, not .*"
CHECKPOINT_CASES = [
    BadInput("weights: missing", ["predict", "a.mp4", "--weights", "\x07"], None, r"no weights at \\x07: give .*"),
    weights_case("folder", lambda folder: (folder / "net.safetensors").mkdir(), "is a folder: give .*"),
    weights_case("empty", content(b"", "net.safetensors"), "is not a complete safetensors file: it has 0 bytes, .*"),
    weights_case("text", content(b"weights " * 9, "net.safetensors"), "is not a complete safetensors file: .*"),
    weights_case("cut", cut, "is not a complete safetensors file: .*"),
    weights_case("pickle", pickled, "is not a complete safetensors file: .*"),
    weights_case("npz", content(WHOLE_NPZ, "net.safetensors"), "is not a complete safetensors file: .*"),
    weights_case("header of 2^60 bytes", content(struct.pack("<Q", 2**60), "net.safetensors"), "is not a complete .*"),
    weights_case("header that is no JSON", safetensors("{" * 100), "is not a complete safetensors file: .*"),
    weights_case("tensor of 2^70", described("{}", (2**70,)), "is not a complete safetensors file: .*"),
    weights_case("description that is no JSON", described("{'a': 1}"), "is not a checkpoint of this package: .*"),
    weights_case("description that is a list", described("[1]"), "is not a checkpoint of this package: .*"),
    weights_case("description nested deep", described("[" * 10**6), "is not a checkpoint of this package: .*"),
    weights_case("description of another format", described('{"format": "\\u001b"}'), "is not a checkpoint of .*"),
    weights_case("description empty", described(json.dumps(FORMAT)), ".* its metadata lacks 'classes'"),
    weights_case(
        "first tensor of 640 MB",
        described(json.dumps(ABOUT | FORMAT), (5 * 2**25,), 5 * 2**27),
        r"does not fit the network it describes: features\.Conv2d_1a_7x7\.conv\.weight is F32 \(167772160,\) in .*",
    ),
    weights_case("field missing", checkpoint(width=None), ".* its metadata lacks 'width'"),
    weights_case("unknown field", checkpoint(**{"\x1b[31m": 1}), r".* its metadata has an unknown field '\\x1b\[31m'"),
    weights_case("unknown stream", checkpoint(stream="depth"), describes("stream", "rgb or flow, not 'depth'")),
    weights_case("stream that is a list", checkpoint(stream=[]), describes("stream", r"rgb or flow, not \[\]")),
    weights_case("classes that are text", checkpoint(classes="abc"), describes("classes", "a list of .*")),
    weights_case("classes that are numbers", checkpoint(classes=[1, 2, 3]), describes("classes", "a list of .*")),
    weights_case("class without a name", checkpoint(classes=["a", "", "c"]), describes("classes", "a list of .*")),
    weights_case("no classes", checkpoint(classes=[]), r"does not describe a network: num_classes must be .*, not 0"),
    weights_case("million classes", checkpoint(classes=["a"] * 10**6), r".* num_classes must be .*, not 1000000"),
    weights_case("one class more", checkpoint(classes=list("abcd")), r"does not fit the network it describes: .*"),
    weights_case("width 0", checkpoint(width=0), WIDTH_RANGE),
    weights_case("width -1", checkpoint(width=-1.0), WIDTH_RANGE),
    weights_case("width nan", checkpoint(width=float("nan")), WIDTH_RANGE),
    weights_case("width inf", checkpoint(width=float("inf")), WIDTH_RANGE),
    weights_case("width 1e9", checkpoint(width=1e9), WIDTH_RANGE),
    weights_case("width of 400 digits", checkpoint(width=10**400), r"does not describe a network: width .*"),
    weights_case("width that is text", checkpoint(width="0.1"), describes("width", "a number, not '0.1'")),
    weights_case("width that is true", checkpoint(width=True), describes("width", "a number, not True")),
    weights_case("another width", checkpoint(width=8), r"does not fit the network it describes: .*"),
    weights_case("channels 10^9", checkpoint(in_channels=10**9), describes("in_channels", "that of the stream, .*")),
    weights_case("channels of flow", checkpoint(in_channels=2), describes("in_channels", "that of the stream, not 2")),
    weights_case("input that is a list", checkpoint(input=[1]), describes("input", r"a mapping, not \[1\]")),
    weights_case("float16", checkpoint(replace_head(lambda x: x.half())), ".* is F16 .*, F32 .*"),
    weights_case("tensor missing", checkpoint(lambda s: s.pop(HEAD_TENSOR)), ".* is no such tensor in the file, .*"),
    weights_case("unknown tensor", checkpoint(lambda s: s.update({"\x1b": torch.zeros(1)})), r".*: \\x1b is F32 .*"),
    weights_case("turned tensor", checkpoint(replace_head(lambda x: x.transpose(0, 1))), ".* fit .*"),
    weights_case("nan", checkpoint(put(HEAD_TENSOR, float("nan"))), rf"is not usable: {HEAD_TENSOR} is not finite; .*"),
    weights_case("inf", checkpoint(put(STEM_TENSOR, float("inf"))), rf"is not usable: {STEM_TENSOR} is not finite; .*"),
]  # fmt: skip


# --- labels and videos ---


@cache
def video() -> bytes:
    return encode(np.full((2, 32, 32, 3), 90, np.uint8), fps=25)


def predicting(labels: bytes | None = None, video_content: Callable[[], bytes] | None = video, **kwargs: Any) -> Write:
    """Writes a network, and files of labels and of a video if there are any."""

    def write(folder: Path) -> None:
        checkpoint(**kwargs)(folder)
        if labels is not None:
            (folder / "labels.txt").write_bytes(labels)
        if video_content:
            (folder / "v.mp4").write_bytes(video_content())

    return write


def huge_labels(folder: Path) -> None:
    predicting(b"")(folder)
    os.truncate(folder / "labels.txt", 2**26)


def labels_case(name: str, write: Write, message: str) -> BadInput:
    command = ["predict", "v.mp4", "--weights", "net.safetensors", "--labels", "labels.txt"]
    return BadInput(f"labels: {name}", command, write, message)


def video_case(name: str, write: Write, message: str, path: str = "v.mp4") -> BadInput:
    return BadInput(f"predict: {name}", ["predict", path, "--weights", "net.safetensors"], write, message)


def folder_of_labels(folder: Path) -> None:
    predicting()(folder)
    (folder / "labels.txt").mkdir()


ADVICE = "give one label per line, in the order of the classes"
PREDICT_CASES = [
    labels_case("missing", predicting(), r"no labels at labels\.txt: give a text file with one label per line"),
    labels_case("folder", folder_of_labels, r"no labels at labels\.txt: give a text file with one label per line"),
    labels_case("empty", predicting(b""), rf"labels\.txt has 0 labels, the network 3 classes: {ADVICE}"),
    labels_case("too few", predicting(b"a\nb\n"), rf"labels\.txt has 2 labels, the network 3 classes: {ADVICE}"),
    labels_case("too many", predicting(b"a\nb\nc\nd"), rf"labels\.txt has 4 labels, the network 3 classes: {ADVICE}"),
    labels_case("no label in a line", predicting(b"a\n \nc"), rf"line 2 of labels\.txt is empty: {ADVICE}"),
    labels_case("not UTF-8", predicting(b"\xff\xfea"), rf"labels\.txt is not UTF-8 text: {ADVICE}"),
    labels_case("64 MB", huge_labels, rf"labels\.txt has 67108864 bytes, too many for labels: {ADVICE}"),
    video_case("video missing", predicting(video_content=None), r"v\.mp4 cannot be opened as a video: .*"),
    video_case("video empty", predicting(video_content=bytes), r"v\.mp4 .*"),
    video_case("video of text", predicting(video_content=lambda: b"video\n" * 99), r"v\.mp4 .*"),
    video_case("folder as video", predicting(), r"\. .*", path="."),
    video_case("name with escapes", predicting(), r"\\x1b\[31m\.mp4 cannot be opened as a video: .*", "\x1b[31m.mp4"),
    video_case(
        "flow stream",
        predicting(channels=2, stream="flow", in_channels=2),
        r"net\.safetensors is a flow stream: give .*",
    ),
]


# --- teachers and students of a training run ---

TINY = "--frames 4 --size 16 --train-clips 16 --test-clips 16 --width 0.1 --epochs 1 --batch-size 8 --results results"


def run_case(name: str, write: Write | None, message: str, flags: str = "--teacher net.safetensors") -> BadInput:
    command = ["train", "--experiment", "distill", *TINY.split(), *flags.split()]
    return BadInput(f"train: {name}", command, write, f"d3d train: {message}")


def with_results(write: Write) -> Write:
    """Also makes the folder of results, which a run makes before it loads the data."""

    def write_both(folder: Path) -> None:
        write(folder)
        (folder / "results/distill").mkdir(parents=True)

    return write_both


FLOW = checkpoint(channels=2, stream="flow", in_channels=2)
STUDENT = "--student net.safetensors --lambda 0"
NAN_HEAD = checkpoint(put(HEAD_TENSOR, float("nan")))
RUN_CASES = [
    run_case("no teacher", None, r"no checkpoint at net\.safetensors: train that network first; .*"),
    run_case("teacher cut", cut, r"net\.safetensors is not a complete safetensors file: .*"),
    run_case("teacher of nan", NAN_HEAD, r"net\.safetensors is not usable: .*"),
    run_case("teacher of width 1e9", checkpoint(width=1e9), rf"net\.safetensors {WIDTH_RANGE}"),
    run_case("no student", None, r"no checkpoint at net\.safetensors: train that network first; .*", STUDENT),
    run_case("student of nan", NAN_HEAD, r"net\.safetensors is not usable: .*", STUDENT),
    run_case("student of another width", checkpoint(), r".* has width 0\.1, .* width 0\.2", f"{STUDENT} --width 0.2"),
    run_case("student of flow", FLOW, r".* net\.safetensors is a flow stream, but this run trains 'rgb'", STUDENT),
    run_case(
        "teacher of other classes",
        with_results(checkpoint(classes=["\x1b[31m", "b" * 10**5, "\n"])),
        r"net\.safetensors was trained on 3 classes \(\\x1b\[31m, b+…b+, \\n\), the data set has 16 .*",
    ),
]  # fmt: skip

CASES = [*NPZ_CASES, *CONVERT_CASES, *CHECKPOINT_CASES, *PREDICT_CASES, *RUN_CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
