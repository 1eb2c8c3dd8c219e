"""Profiles that are damaged, hostile, or extend what they cannot."""

import os
from pathlib import Path

import pytest

from tests.bad_inputs.harness import BadInput, assert_refused

SMALL = "seeds: [0, 1]\narms: [rgb, flow]\n"


def put(path: Path, content: bytes | str) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def profile(name: str, content: bytes | str, message: str, **others: str) -> BadInput:
    """A profile a.yaml that `d3d profile` refuses, and other profiles beside it."""

    def write(folder: Path) -> None:
        put(folder / "a.yaml", content)
        for other, text in others.items():
            put(folder / f"{other}.yaml", text)

    return BadInput(name, ("profile", "a.yaml"), write, message)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = {f"p{n}": f"extends: p{n + 1}" for n in range(30)} | {"p30": SMALL}
CASES = [
    profile("no YAML", "a: [", r"a\.yaml is no YAML file: while parsing a flow node.*, line 1"),
    profile("empty", "", r"a\.yaml must map parameters to values, such as `epochs: 8`"),
    profile("list", "- 1", r"a\.yaml must map parameters to values.*"),
    profile("number", "5", r"a\.yaml must map parameters to values.*"),
    profile("no UTF-8", b"seeds: [\xff]", r"a\.yaml is no text in UTF-8, from byte 9 on"),
    profile("NUL", "seeds: \0", r"a\.yaml is no YAML file: character 8 is no printable text"),
    profile("escape sequence", "seeds: \x1b[2J", r"a\.yaml is no YAML file: character 8 is no printable text"),
    profile("billion laughs", LAUGHS, r"a\.yaml has an anchor or alias in line 1: write the value out"),
    profile("alias", SMALL + "ablation_seeds: *x", r"a\.yaml has an anchor or alias in line 3: .*"),
    profile("Python object", "seeds: !!python/object/apply:os.system [id]", r"a\.yaml has the tag .* in line 1.*"),
    profile("local tag", "seeds: !include b.yaml", r"a\.yaml has the tag '!include' in line 1.*"),
    profile("nested lists", "seeds: " + "[" * 10**5, r"a\.yaml nests lists and mappings more than 50 deep"),
    profile("nested blocks", "- " * 10**4, r"a\.yaml nests lists and mappings more than 50 deep"),
    profile("a key twice", SMALL + "rho: 0.5\nrho: 0.8", r"a\.yaml has the key 'rho' twice: keep one of them"),
    profile("two documents", SMALL + "---\n" + SMALL, r"a\.yaml is no YAML file: .* found another document, line 3"),
    profile("numbers as keys", SMALL + "1: 2\nb: 3", r"a\.yaml has the key 1 in line 3: a key is text, so quote it"),
    profile("null as a key", SMALL + "~: 2", r"a\.yaml has the key None in line 3.*"),
    profile("list as a key", SMALL + "? [a]\n: 2", r"a\.yaml has the key \['a'\] in line 3.*"),
    profile("merge key", SMALL + "<<: {rho: 0.5}", r"a\.yaml: '<<' is no parameter of any experiment nor key.*"),
    profile("NaN", SMALL + "rho: .nan", r"a\.yaml holds nan in 'rho': a number must be finite"),
    profile("infinite", SMALL + "rho: -.inf", r"a\.yaml holds -inf in 'rho': a number must be finite"),
    profile("400 digits", SMALL + "epochs: 1" + "0" * 400, r".* holds an integer of about 401 digits in 'epochs': .*"),
    profile("5000 digits", SMALL + "epochs: " + "9" * 5000, r"a\.yaml is no YAML file: a number does not parse"),
    profile("date", SMALL + "rho: 2026-13-45", r"a\.yaml: rho must be of type float like 0\.5, not '2026-13-45'"),
    profile("text of a million letters", SMALL + "rho: " + "x" * 10**6, r"a\.yaml: rho must be of type float.*'x+.*"),
    profile("larger than a MiB", SMALL + "#" * 2**21, r"a\.yaml is larger than 1 MiB, the most that is read"),
    profile("unknown key", SMALL + "learning_rat: 0.1", r"a\.yaml: 'learning_rat' is no parameter .*learning_rate.*"),
    profile("unknown key of many letters", SMALL + "? " + "k" * 10**5 + "\n: 1", r".*'k+.*k+' is no parameter.*"),
    profile("unknown arm", "seeds: [0]\narms: [rbg]", r"a\.yaml: arms names 'rbg', which is not one of .*"),
    profile("arms as a mapping", "seeds: [0]\narms: {rgb: 1}", r"a\.yaml: arms must list arms, each once, not {.*}"),
    profile("arms of lists", "seeds: [0]\narms: [[rgb]]", r"a\.yaml: arms must list arms, each once, not .*"),
    profile("seeds true", "seeds: [true]\narms: [rgb]", r"a\.yaml: seeds must list whole numbers from 0 to 999.*"),
    profile("seeds text", "seeds: '0 1'\narms: [rgb]", r"a\.yaml: seeds must list whole numbers from 0 to 999.*"),
    profile("overrides list", SMALL + "overrides: [1]", r"a\.yaml: overrides must map arms to their parameters.*"),
    profile("students list", SMALL + "students: [1]", r"a\.yaml: students must map parameters to values, not \[1\]"),
    profile("extends itself", "extends: a", r"a\.yaml extends itself, through a\.yaml"),
    profile("extends in a circle", "extends: b", r"a\.yaml extends itself, through c\.yaml",
            b="extends: c", c="extends: a"),
    profile("extends what is missing", "extends: b", r"a\.yaml extends 'b', but there is no b\.yaml"),
    profile("extends a path", "extends: ../b", r"a\.yaml: extends must name a profile in the same folder.*'\.\./b'"),
    profile("extends a list", "extends: [b]", r"a\.yaml: extends must name a profile in the same folder.*\['b'\]"),
    profile("extends null", "extends:", r"a\.yaml: extends must name a profile in the same folder.* not None"),
    profile("extends nothing", "extends: ''", r"a\.yaml extends '', but there is no \.yaml"),
    profile("extends a NUL", 'extends: "b\\0"', r"a\.yaml: extends must name a profile .* not 'b\\x00'"),
    profile("extends a long name", "extends: " + "b" * 300, r"a\.yaml: extends must name a profile .* not 'b+.*"),
    profile("extends a broken profile", "extends: b", r"b\.yaml is no YAML file: .*", b="a: ["),
    profile("a long chain", "extends: p0", r"p19\.yaml ends a chain of 20 profiles that .*: the limit", **CHAIN),
    BadInput("no profile", ("profile", "a.yaml"), None, r"a\.yaml: No such file or directory"),
    BadInput("folder as profile", ("profile", "a.yaml"), lambda f: (f / "a.yaml").mkdir(), ".* is a folder, no file"),
    BadInput("pipe as profile", ("profile", "a.yaml"), lambda f: os.mkfifo(f / "a.yaml"), ".* is a pipe or device.*"),
    BadInput("device as profile", ("profile", "/dev/zero"), None, r"/dev/zero is a pipe or device, no file"),
    BadInput("escape sequence as name", ("profile", "\x1b[2J.yaml"), lambda f: put(f / "\x1b[2J.yaml", "rho: 1"),
             r"\\x1b\[2J\.yaml: seeds must list .*"),
    BadInput("configuration with aliases", ("train", "--config", "a.yaml"), lambda f: put(f / "a.yaml", LAUGHS),
             r"d3d train: a\.yaml has an anchor or alias in line 1: write the value out"),
    BadInput("configuration with a key twice", ("train", "--config", "a.yaml"),
             lambda f: put(f / "a.yaml", "seed: 1\nseed: 2"), r"d3d train: a\.yaml has the key 'seed' twice.*"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    assert_refused(case, folder)
