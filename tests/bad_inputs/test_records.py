"""Records, archives and arrays that are damaged, hostile, or not there."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from d3d.study.arrays import short_sha256
from tests.bad_inputs.harness import BadInput, assert_refused
from tests.study.test_records import PROVENANCE

RECORD = {
    "schema": 1,
    "experiment": "train",
    "arm": "rgb",
    "seed": 0,
    "params": {"rho": 0.5},
    "metrics": {"iid/top1": 0.5},
    "stand_in": True,
    "provenance": PROVENANCE,
    "files": {},
    "arrays": "",
}
PATH = "s/train/rgb-seed0.json"
SHOW = ("records", "show", PATH)
NPZ = r"s/train/rgb-seed0\.npz"
ARRAYS = {"logits/iid": np.eye(3, dtype=np.float32), "labels/iid": np.arange(3)}


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def raw(content: bytes | str):
    """Writes the file of a record as it is."""
    return lambda folder: put(folder / PATH, content)


def changed(**fields):
    """Writes a record with these fields changed."""
    return raw(json.dumps(RECORD | fields))


def without(name: str):
    return raw(json.dumps({key: value for key, value in RECORD.items() if key != name}))


def shown(name: str, write, message: str) -> BadInput:
    """A file that `d3d records show` refuses."""
    return BadInput(name, SHOW, write, rf"s/train/rgb-seed0\.json{message}")


def provenance(**entries):
    return changed(provenance=PROVENANCE | entries)


FILES = [
    shown("empty record", raw(""), r" is not complete JSON: Expecting value, line 1.*; if a run wrote it, .*"),
    shown("half a record", raw(json.dumps(RECORD)[:80]), " is not complete JSON.*"),
    shown("two records in one file", raw(json.dumps(RECORD) * 2), " is not complete JSON: Extra data.*"),
    shown("nested lists", raw("[" * 200_000), " nests lists and mappings more than 50 deep.*"),
    shown("nested params", changed(params=json.loads('{"a":' * 60 + "1" + "}" * 60)), " nests .* 50 deep.*"),
    shown("a key twice", raw('{"schema": 1, "schema": 2}'), " has the key 'schema' twice.*"),
    shown("no UTF-8", raw(b'{"schema": "\xff"}'), r" is no text in UTF-8, from byte 13 on.*"),
    shown("UTF-16", raw(json.dumps(RECORD).encode("utf-16")), " is no text in UTF-8.*"),
    shown("NUL", raw(b"\0" * 100), " is not complete JSON.*"),
    shown("list at the top", raw("[1]"), " is not a run record: it has no field 'schema'"),
    shown("number at the top", raw("1"), " is not a run record: it has no field 'schema'"),
    shown("escape sequence as field", raw('{"schema": 1, "\\u001b[31m": 1}'), r".*unknown field '\\x1b\[31m'"),
    shown("huge file", lambda f: (put(f / PATH, ""), os.truncate(f / PATH, 2**26)), " is larger than 32 MiB.*"),
    shown("millions of small lists", raw("[" + "[]," * 10_000_000 + "[]]"), " needs more memory than.*"),
    shown("folder instead of a file", lambda f: (f / PATH).mkdir(parents=True), " is a folder, no file"),
    shown("pipe instead of a file", lambda f: (put(f / "s/train/x", ""), os.mkfifo(f / PATH)), " is a pipe or .*"),
    BadInput("no file", SHOW, None, r"s/train/rgb-seed0\.json: No such file or directory"),
    BadInput("escape sequence as name", ("records", "show", "\x1b[31m.json"), lambda f: put(f / "\x1b[31m.json", ""),
             r"\\x1b\[31m\.json is not complete JSON.*"),
    BadInput("link that loops", SHOW, lambda f: (put(f / "s/train/x", ""), (f / PATH).symlink_to("rgb-seed0.json")),
             r".*Too many levels of symbolic links.*"),
]  # fmt: skip
FIELDS = [
    shown("schema true", changed(schema=True), " has schema True, this version reads 1.*"),
    shown("schema 1.0", changed(schema=1.0), r" has schema 1\.0, this version reads 1.*"),
    shown("schema 99", changed(schema=99), " has schema 99, this version reads 1.*"),
    shown("unknown field", changed(extra=1), " is not a run record: it has an unknown field 'extra'"),
    shown("huge name of a field", changed(**{"x" * 10**6: 1}), r" is not a run record: it has an unknown field 'x+.*"),
    shown("missing field", without("metrics"), " is not a run record: it has no field 'metrics'"),
    shown("metric NaN", changed(metrics={"iid/top1": float("nan")}), r" holds nan in 'iid/top1': .* must be finite.*"),
    shown("metric 1e999", raw(json.dumps(RECORD).replace("0.5}, \"stand", "1e999}, \"stand")),
          r" holds inf in 'iid/top1': .* must be finite.*"),
    shown("metric of 400 digits", changed(metrics={"a": 10**400}), r" holds an integer of about 401 digits in 'a': .*"),
    shown("metric of 5000 digits", raw('{"schema": ' + "9" * 5000 + "}"), " holds a number of thousands of digits.*"),
    shown("metric text", changed(metrics={"a": "0.5"}), ": metric 'a' must be a finite number, not '0.5'"),
    shown("metric list", changed(metrics={"a": [1]}), r": metric 'a' must be a finite number, not \[1\]"),
    shown("metric null", changed(metrics={"a": None}), ": metric 'a' must be a finite number, not None"),
    shown("metric true", changed(metrics={"a": True}), ": metric 'a' must be a finite number, not True"),
    shown("metric without a name", changed(metrics={"": 1}), ": a metric or parameter must have a name of 1 to 300.*"),
    shown("metrics list", changed(metrics=[1]), r": metrics must be of type dict, not \[1\]"),
    shown("params null", changed(params=None), ": params must be of type dict, not None"),
    shown("parameter list", changed(params={"a": [1]}), r": parameter 'a' must be text, true, false or .*, not \[1\]"),
    shown("parameter mapping", changed(params={"a": {}}), r": parameter 'a' must be text, true, false or .*, not {}"),
    shown("seed text", changed(seed="0"), ": seed must be of type int, not '0'"),
    shown("seed true", changed(seed=True), ": seed must be of type int, not True"),
    shown("seed below zero", changed(seed=-1), ": seed must lie from 0 to 999, not -1"),
    shown("seed too large", changed(seed=1000), ": seed must lie from 0 to 999, not 1000"),
    shown("arm with a slash", changed(arm="../../etc/x"), r": arm must be a name of .*, not '\.\./\.\./etc/x'"),
    shown("arm with markup", changed(arm="a|<script>"), r": arm must be a name of .*, not 'a\|<script>'"),
    shown("arm with an escape sequence", changed(arm="\x1b[2J"), r": arm must be a name of .*, not '\\x1b\[2J'"),
    shown("arm of a million letters", changed(arm="a" * 10**6), r": arm must be a name of .*, not 'a+.*"),
    shown("experiment with dots", changed(experiment=".."), r": experiment must be a name of .*, not '\.\.'"),
    shown("stand_in number", changed(stand_in=1), ": stand_in must be of type bool, not 1"),
    shown("arrays no checksum", changed(arrays="../x"), ": arrays must be a checksum of 16 hex digits or empty.*"),
    shown("provenance null", changed(provenance=None), ": provenance must be of type dict, not None"),
    shown("no provenance", changed(provenance={}), ": provenance has no commit, which must be text"),
    shown("seconds text", provenance(seconds="1"), ": seconds in provenance must be a number from 0 on, not '1'"),
    shown("seconds below zero", provenance(seconds=-1), ": seconds in provenance must be a number from 0 on, not -1"),
    shown("started no time", provenance(started="soon"), r": started in provenance must be a time such as .*'soon'"),
    shown("started number", provenance(started=5), ": started in provenance must be a time such as .*, not 5"),
    shown("packages list", provenance(packages=[]), r": packages in provenance must be versions by package, not \[\]"),
    shown("dirty number", provenance(dirty=0), ": dirty in provenance must be true or false, not 0"),
    shown("device list", provenance(device=["x"]), r": device in provenance must be text, not \['x'\]"),
    shown("processes text", provenance(processes="2"), ": processes in provenance must be a count, not '2'"),
    shown("files list", changed(files=[]), r": files must be of type dict, not \[\]"),
    shown("decoded below zero", changed(files={"decoded": -1}), ": decoded in files must be a count, not -1"),
    shown("refused list", changed(files={"refused": []}), r": refused in files must be reasons by file, not \[\]"),
    shown("moved record", changed(arm="flow"), " holds the record of train/flow-seed0: it was moved or renamed"),
]  # fmt: skip


def archive(*lines: str | bytes):
    """Writes an archive with these lines after one valid record."""
    valid = json.dumps(RECORD).encode()
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    return lambda folder: put(folder / "a.jsonl", b"\n".join([valid, *encoded]) + b"\n")


def line(**fields) -> str:
    return json.dumps(RECORD | {"seed": 1} | fields)


CLAIMS = "seeds: 3\nclaims: [{id: H1, statement: s, source: t, command: c, rule: {all: [%s]}}]\n"
CONDITION = "{contrast: rgb, metric: iid/top1, above: 0}"


def judged(name: str, write, message: str, results: str = "a.jsonl") -> BadInput:
    """Records that `d3d report claims` refuses, with a valid ledger."""

    def write_all(folder: Path) -> None:
        put(folder / "book/claims.yaml", CLAIMS % CONDITION)
        if write:
            write(folder)

    return BadInput(name, ("report", "claims", "--results", results), write_all, message)


ARCHIVES = [
    judged("half a line", archive(line()[:50]), r"line 2 of a\.jsonl is not complete JSON.*"),
    judged("empty line", archive("", line()), r"line 2 of a\.jsonl is not complete JSON.*"),
    judged("list as a line", archive("[1]"), r"line 2 of a\.jsonl is not a run record.*"),
    judged("line of NUL", archive(line(), b"\0" * 9), r"line 3 of a\.jsonl is not complete JSON.*"),
    judged("nested line", archive("[" * 10**5), r"line 2 of a\.jsonl nests .* 50 deep.*"),
    judged("metric NaN in a line", archive(line(metrics={"a": float("nan")})), r"line 2 of .* holds nan in 'a'.*"),
    judged("record twice", archive(line(seed=0)), r"a\.jsonl holds train/rgb-seed0 more than once: keep one of them"),
    judged("other parameters", archive(line(params={"rho": 0.6})), r".*made with different rho: delete.*"),
    judged("other parameters by markup", archive(line(params={"\x1b[31m": 1})), r".*different \\x1b\[31m: delete.*"),
    judged("cell with a slash", archive(line(cell="../x")), r"line 2 of a\.jsonl: a cell must have a name .*'\.\./x'"),
    judged("cell number", archive(line(cell=3)), r"line 2 of a\.jsonl: a cell must have a name .* not 3"),
    judged("cell empty mapping", archive(line(cell={})), r"line 2 of a\.jsonl: a cell must have a name .* not {}"),
    judged("value twice, in two cells", archive(line(seed=0, cell="b")), r"iid/top1 of rgb has two values for seed 0"),
    judged("no such archive", None, r"no records at a\.jsonl: give .*"),
    judged("folder as archive", lambda f: (f / "a.jsonl").mkdir(), r"a\.jsonl is a folder, no file"),
    judged("huge archive", lambda f: (put(f / "a.jsonl", ""), os.truncate(f / "a.jsonl", 2**26)),
           r"a\.jsonl is larger than 32 MiB.*"),
    judged("folder without records", lambda f: (f / "s").mkdir(), "no records at s: give .*", "s"),
]  # fmt: skip


def npz(content: bytes | None, record_arrays: str = ""):
    """Writes a record and, beside it, this .npz file; its checksum is right unless given."""

    def write(folder: Path) -> None:
        changed(arrays=record_arrays or short_sha256(content or b""))(folder)
        if content is not None:
            put((folder / PATH).with_suffix(".npz"), content)

    return write


def packed(**arrays: np.ndarray) -> bytes:
    """The content of an .npz file; `__` in a name stands for `/`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name.replace("__", "/"): x for name, x in arrays.items()})
    return buffer.getvalue()


def zipped(members: dict[str, bytes], *, encrypted: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    content = buffer.getvalue()
    # The first bit of the flags of a member, in its own header and in the directory.
    return content.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\1\0").replace(
        b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0") if encrypted else content  # fmt: skip


def npy(shape: str, descr: str = "'<f8'", data: bytes = b"\0" * 16) -> bytes:
    """An array of a header that says so."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def bomb(size: int) -> bytes:
    """A small .npz file with one array of `size` zero bytes."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(f"({size},)", "'|u1'", b""))
        for _ in range(size // 2**24):
            member.write(bytes(2**24))
    return buffer.getvalue()


def bomb_beside_record(size: int):
    def write(folder: Path) -> None:
        npz(bomb(size))(folder)

    return write


def compared(name: str, write, message: str) -> BadInput:
    return BadInput(name, ("report", "compare", "s"), write, message)


IID = {"logits__iid": ARRAYS["logits/iid"], "labels__iid": ARRAYS["labels/iid"]}
ARRAY_FILES = [
    compared("no arrays", npz(None), rf"{NPZ} is missing, although its record exists.*"),
    compared("other arrays", npz(packed(**IID), "0" * 16), rf"{NPZ} does not match the checksum in its record.*"),
    compared("empty arrays", npz(b""), rf"{NPZ} is not a complete .npz file of arrays.*"),
    compared("half the arrays", npz(packed(**IID)[:-60]), rf"{NPZ} is not a complete .npz file of arrays.*"),
    compared("damaged arrays", npz(packed(**IID).replace(b"logits/iid.npy", b"logits/iid.npz", 1)),
             rf"{NPZ} is not a complete .npz file of arrays.*"),
    compared("a bare array", npz(npy("(2,)")), rf"{NPZ} is not a complete .npz file of arrays.*"),
    compared("text as an array", npz(zipped({"x.npy": b"hello"})), rf"{NPZ} is not a complete .npz file of arrays.*"),
    compared("member that is no array", npz(zipped({"x.txt": b"hello"})), rf"{NPZ} is not a complete .npz file .*"),
    compared("name without ending", npz(zipped({"x.npy": npy("(2,)"), "x": b""})), rf"{NPZ} .*'x' is no name .*"),
    compared("encrypted", npz(zipped({"x.npy": npy("(2,)")}, encrypted=True)), rf"{NPZ} .*'x' is encrypted"),
    compared("Python objects", npz(packed(x=np.array([{}, 1], object))), rf"{NPZ} .*'x' holds Python objects.*"),
    compared("shape that lies", npz(zipped({"x.npy": npy("(2**40,)".replace("2**40", str(2**40)))})),
             rf"{NPZ} is not .*: 'x' has another size than its shape .*"),
    compared("shape below zero", npz(zipped({"x.npy": npy("(-2,)")})), rf"{NPZ} .* the header of 'x' is damaged"),
    compared("shape that is code", npz(zipped({"x.npy": npy("__import__('os').getcwd()")})), rf"{NPZ} is not a .*"),
    compared("bomb of a GiB", bomb_beside_record(2**30 + 2**24), rf"{NPZ}: array 'x' is larger than 1024 MiB"),
    compared("bomb of 768 MiB", bomb_beside_record(768 * 2**20), rf"{NPZ}: 'x' needs 805306496 bytes .*"),
    compared("logits without labels", npz(packed(logits__iid=np.eye(3))), rf"{NPZ}: 'logits/iid' needs .* labels.*"),
    compared("other number of labels", npz(packed(logits__iid=np.eye(3), labels__iid=np.arange(2))),
             rf"{NPZ}: 'logits/iid' must hold numbers for 2 clips, as its labels do, not float64 of shape \(3, 3\)"),
    compared("labels beyond the classes", npz(packed(logits__iid=np.eye(3), labels__iid=np.arange(3) + 1)),
             rf"{NPZ}: labels of 'iid' must lie from 0 to 2"),
    compared("labels as text", npz(packed(logits__iid=np.eye(3), labels__iid=np.array(["a", "b", "c"]))),
             rf"{NPZ}: 'logits/iid' needs whole numbers labels.*"),
    compared("logits NaN", npz(packed(logits__iid=np.full((3, 3), np.nan), labels__iid=np.arange(3))),
             rf"{NPZ}: 'logits/iid' must be finite, but holds nan.*"),
    compared("logits text", npz(packed(logits__iid=np.full((3, 3), "a"), labels__iid=np.arange(3))),
             rf"{NPZ}: 'logits/iid' must hold numbers for 3 clips.*"),
    compared("logits of one dimension", npz(packed(logits__iid=np.ones(3), labels__iid=np.arange(3))),
             rf"{NPZ}: 'logits/iid' must hold numbers for 3 clips.*"),
    compared("no clips", npz(packed(logits__iid=np.ones((0, 3)), labels__iid=np.arange(0))),
             rf"{NPZ}: 'logits/iid' needs .* labels.*"),
]  # fmt: skip
PACK = ("records", "pack", "s")


def pack(name: str, write, message: str, *arguments: str) -> BadInput:
    return BadInput(name, (*PACK, *arguments), write, message)


def with_metrics_file(*rows: str):
    def write(folder: Path) -> None:
        npz(packed(**IID))(folder)
        put((folder / PATH).with_suffix(".jsonl"), "".join(f"{row}\n" for row in rows))

    return write


def with_file(path: str, content: str = "mine"):
    return lambda folder: (changed()(folder), put(folder / path, content))


PACKED = [
    pack("no folder", None, "s does not exist: give a folder that a study has written, such as results/smoke"),
    pack("empty folder", lambda f: (f / "s").mkdir(), r".*/s holds no records: give .*"),
    pack("file as folder", lambda f: put(f / "s", "x"), "s is a file: give a folder .*"),
    pack("stray JSON", lambda f: (changed()(f), put(f / "s/plots/a.json", "{}")), r".*a\.json is not a run record.*"),
    pack("folder as a record", lambda f: (changed()(f), (f / "s/train/x.json").mkdir()), r".*x\.json is a folder.*"),
    pack("dangling link", lambda f: (changed()(f), (f / "s/train/x.json").symlink_to("none")), r".*No such file.*"),
    pack("cell with markup", lambda f: put(f / "s/<b>/train/rgb-seed0.json", json.dumps(RECORD)),
         r".*/s: a cell must have a name of .* not '<b>'"),
    pack("output with other content", with_file("a.jsonl"), r"a\.jsonl would be overwritten, but belongs to no .*",
         "--out", "a"),
    pack("output is a folder", lambda f: (changed()(f), (f / "a.jsonl").mkdir()), r"a\.jsonl would be overwritten.*",
         "--out", "a.jsonl"),
    pack("arrays of others", with_file("a.npz"), r"a\.npz would be overwritten, but belongs to no .*", "--out", "a"),
    pack("output over a run", with_metrics_file('{"epoch": 1, "loss": 2.0}'),
         r"s/train/rgb-seed0\.jsonl would be overwritten, but .*", "--out", "s/train/rgb-seed0"),
    pack("output without a name", changed(), r"\.\. names no file to write.*", "--out", ".."),
    pack("output at the root", changed(), r"/ names no file to write.*", "--out", "/"),
    pack("output below a file", with_file("x"), r".*File exists", "--out", "x/a"),
    pack("metrics row that is no JSON", with_metrics_file('{"epoch": 1, "loss": 2.0}', '{"epoch": x}'),
         r"line 2 of .*/s/train/rgb-seed0\.jsonl is not complete JSON.*"),
    pack("metrics row with text", with_metrics_file('{"epoch": 1, "loss": "low"}'),
         r"line 1 of .*rgb-seed0\.jsonl is no row of metrics: .*"),
    pack("metrics rows of other columns",
         with_metrics_file('{"epoch": 1, "loss": 1, "a": 1}', '{"epoch": 1, "loss": 1}'),
         r".*rgb-seed0\.jsonl does not hold the curves of a run.*"),
    pack("metrics row without epoch", with_metrics_file('{"loss": 1}'), r".*does not hold the curves.*"),
    pack("metrics column of text", with_metrics_file('{"epoch": 1, "loss": 1, "a": "b"}'), ".*not hold the curves.*"),
    pack("metrics row of NaN epoch", with_metrics_file('{"epoch": NaN, "loss": 1}'), r".*does not hold the curves.*"),
    pack("bomb beside a record", bomb_beside_record(2**30 + 2**24), r".*\.npz: array 'x' is larger than 1024 MiB"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*FILES, *FIELDS, *ARCHIVES, *ARRAY_FILES, *PACKED], ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    assert_refused(case, folder)
