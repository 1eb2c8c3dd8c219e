"""Staleness: which changes of the code change a hash and which do not."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from d3d.study import arms, plan, records, staleness
from d3d.study.arms import ARMS
from d3d.study.experiments import EXPERIMENTS, defaults
from d3d.study.parameters import NetworkConfig
from d3d.study.records import ROOT
from d3d.study.run import start


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the package and the notebooks, which a test may edit."""
    for folder in ("d3d", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(staleness, "ROOT", tmp_path)
    return tmp_path


def hashes():
    return {name: staleness.source_hash(name) for name in EXPERIMENTS}


def stale(before):
    """The experiments whose hash differs from `before`."""
    return {name for name, value in hashes().items() if value != before[name]}


def substitute(path, pattern, replacement):
    """Replaces the first match of a pattern in a file, which must have one."""
    text, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count, f"{path} has no {pattern}"
    path.write_text(text)


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("data/sprites", set(EXPERIMENTS) - {"fuse", "compare"}),
        ("train/objective", {"train", "distill", "leak", "detect"}),
        ("train/losses", {"train", "distill", "leak", "detect"}),
        ("flow/kernels", set(EXPERIMENTS) - {"fuse", "compare"}),
        ("data/file_clips", {"train", "distill", "evaluate", "leak", "probe", "attribution", "detect"}),
        ("data/command", set()),
        ("train/command", set()),
        ("train/validate", {"evaluate"}),
        ("probing/linear", {"probe"}),
        ("detection/network", {"detect"}),
        ("detection/command", set()),
        ("probing/attribution", {"attribution"}),
        ("train/fuse", {"fuse", "compare"}),
        ("train/compare", {"compare"}),
        ("study/arms", set()),
        ("study/plan", set()),
        ("study/records", set()),
        ("report/plots", set()),
        ("report/ledger", set()),
        ("pictures", set()),
        ("progress", set()),
    ],
)
def test_a_changed_module_changes_the_hash_of_its_users(tree, module, changed):
    before = hashes()
    with open(tree / "d3d" / f"{module}.py", "a") as file:
        file.write("\nCHANGED = True\n")
    assert stale(before) == changed


def test_comments_docstrings_and_formatting_do_not_count(tree):
    before = hashes()
    for path in (tree / "d3d").rglob("*.py"):
        code = path.read_text()
        # Triton kernels too, although Triton compiles from their source text.
        code = re.sub(r'^"""', '"""More words. ', code, count=1) + "\n# A comment at the end.\n"
        path.write_text(code.replace("\n\n\n", "\n\n\n\n# Between.\n\n"))
    assert stale(before) == set()


def test_the_docstring_of_a_function_does_not_count(tree):
    before = hashes()
    substitute(tree / "d3d/train/losses.py", r'\n    """', '\n    """Other words. ')
    assert stale(before) == set()


def test_a_renamed_module_changes_no_hash(tree):
    before = hashes()
    (tree / "d3d/train/losses.py").rename(tree / "d3d/train/distances.py")
    for path in (tree / "d3d").rglob("*.py"):
        path.write_text(path.read_text().replace("d3d.train.losses", "d3d.train.distances"))
    assert stale(before) == set()
    (tree / "d3d/s3dg/ops.py").rename(tree / "d3d/s3dg/operations.py")
    for name in ("s3dg/blocks", "s3dg/graphs", "detection/network"):
        path = tree / f"d3d/{name}.py"
        path.write_text(
            re.sub(r"\bops\.", "operations.", path.read_text())
            .replace("from d3d.s3dg import ops", "from d3d.s3dg import operations")
            .replace("from d3d.s3dg.ops", "from d3d.s3dg.operations")
            .replace("from torchvision.operations.", "from torchvision.ops.")
        )
    assert stale(before) == set()


def test_a_record_is_stale_if_the_definition_of_its_arm_changed(monkeypatch):
    """An ensemble with other members, or a variant of TV-L1 with other parameters."""

    def record(experiment, arm):
        provenance = {"source": staleness.source_hash(experiment), "made_from": plan.made_from(experiment, arm)}
        return records.Record(experiment, arm, 0, {}, {}, True, provenance)

    fused, variant, network = record("fuse", "two_stream"), record("tvl1", "warps_2"), record("distill", "d3d")
    assert all(map(staleness.matches_code, (fused, variant, network)))
    monkeypatch.setitem(ARMS, "two_stream", replace(ARMS["two_stream"], members=("rgb_twin", "flow")))
    monkeypatch.setitem(arms.TVL1_VARIANTS, "warps_2", {"warps": 3})
    monkeypatch.setitem(ARMS, "new", ARMS["d3d"])
    assert [staleness.matches_code(r) for r in (fused, variant, network)] == [False, False, True]


def test_a_constant_in_an_indirect_import_counts(tree):
    before = hashes()
    substitute(tree / "d3d/flow/fields.py", 'mode="bicubic"', 'mode="bilinear"')
    assert {"train", "distill", "probe", "tvl1"} <= stale(before)


def test_the_default_of_a_parameter_that_a_notebook_cannot_set_counts(tree, monkeypatch):
    """Leak controls train with a dropout that is not in their records."""
    before = hashes()
    monkeypatch.setattr(NetworkConfig.__dataclass_fields__["dropout"], "default", 0.5)
    assert "leak" in stale(before)
    assert "train" not in stale(before)  # dropout is in its records


@pytest.mark.parametrize(
    "line",
    [
        "import d3d.train.losses as losses",
        "from .losses import get_distance",
        "from d3d import train",
        "from d3d.train import get_distance",
    ],
)
def test_an_import_that_cannot_be_traced_to_a_module_is_refused(tree, line):
    with open(tree / "d3d/train/objective.py", "a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match="is not followed"):
        staleness.source_hash("train")


def test_a_record_without_a_newer_parameter_stays_current(tmp_path):
    run = start("train", defaults("train") | {"results": str(tmp_path)})
    run.write("rgb", {"iid/top1": 0.5})
    path = tmp_path / "train/rgb-seed0.json"
    content = json.loads(path.read_text())
    del content["params"]["dropout"]
    path.write_text(json.dumps(content))
    assert staleness.is_current(path, "train", {"results": str(tmp_path)})
    assert not staleness.is_current(path, "train", {"results": str(tmp_path), "dropout": 0.5})


def test_importing_another_function_under_the_same_name_counts(tree):
    before = hashes()
    substitute(tree / "d3d/train/networks.py", r"\binfer_logits, predict\b", "infer_features as infer_logits, predict")
    assert {"train", "distill"} <= stale(before)


def test_modules_that_name_each_other_are_refused(tree):
    """Their hashes would depend on which of them is read first."""
    with open(tree / "d3d/data/workers.py", "a") as file:
        file.write('\nPRELOADED = "d3d.data.file_clips"\n')
    with pytest.raises(
        ValueError, match=r"\w+.py is named by a module that it imports: the hash would depend on which"
    ):
        hashes()


def test_the_code_of_a_chapter_counts_and_its_text_does_not(tree):
    path = tree / "notebooks/chapters/streams.ipynb"
    before = staleness.notebook_hash("notebooks/chapters/streams.ipynb")
    substitute(path, '"# ', '"# Another title: ')
    assert staleness.notebook_hash("notebooks/chapters/streams.ipynb") == before
    with open(tree / "d3d/report/plots.py", "a") as file:
        file.write("\nCHANGED = True\n")
    assert staleness.notebook_hash("notebooks/chapters/streams.ipynb") != before


def test_a_record_is_current_until_parameters_or_code_change(tmp_path, tree):
    overrides = {"results": str(tmp_path / "r"), "seed": 1, "rho": 0.7}
    run = start("train", defaults("train") | overrides)
    run.write("rgb", {"iid/top1": 0.5})
    path = tmp_path / "r/train/rgb-seed1.json"
    assert staleness.is_current(path, "train", overrides)
    assert staleness.is_current(path, "train", overrides | {"steps": 99})
    assert not staleness.is_current(path, "train", overrides | {"rho": 0.8})
    assert not staleness.is_current(path, "train", {"results": str(tmp_path / "r")})
    assert not staleness.is_current(path.with_name("flow-seed1.json"), "train", overrides)
    (tree / "d3d/train/losses.py").write_text("")
    assert not staleness.is_current(path, "train", overrides)


def test_an_edit_during_a_run_does_not_change_its_source(tmp_path, tree):
    run = start("train", defaults("train") | {"results": str(tmp_path / "r")})
    before = staleness.source_hash("train")
    (tree / "d3d/train/losses.py").write_text("")
    run.write("rgb", {"iid/top1": 0.5})
    assert records.read(tmp_path / "r/train/rgb-seed0.json").provenance["source"] == before


def test_the_age_of_a_stamp_says_whether_a_result_is_stale(tmp_path):
    result = tmp_path / "result"
    result.write_text("done")
    stamp = staleness.write_stamp(tmp_path / "plan" / "stamp", "a", current=True)
    assert Path(stamp).stat().st_mtime < result.stat().st_mtime
    for content, current, newer in [("a", None, False), ("b", None, True), ("b", True, False), ("b", False, True)]:
        staleness.write_stamp(stamp, content, current=current)
        assert (Path(stamp).stat().st_mtime >= result.stat().st_mtime) == newer
