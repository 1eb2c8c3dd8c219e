"""The settings of profiles/slurm and the page about clusters: what they name exists, and its commands are tested."""

import re

import pytest
import yaml

from d3d.study.records import ROOT
from tests.slurm import page

SETTINGS = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
RULES = set(re.findall(r"^rule (\w+):", (ROOT / "Snakefile").read_text(), re.MULTILINE))
GPU_RULES = set(
    re.findall(r"^rule (\w+):(?:(?!^rule ).*\n)*?        gpu=", (ROOT / "Snakefile").read_text(), re.MULTILINE)
)
# Resources that the plugin turns into options of sbatch.
RESOURCES = {
    "slurm_partition",
    "slurm_account",
    "qos",
    "constraint",
    "slurm_extra",
    "nodes",
    "runtime",
    "mem_mb",
    "gpu",
}
RESOURCES |= {"gres", "gpu_model", "disk_mb"}
ALL_SETTINGS = [SETTINGS, *map(yaml.safe_load, page.blocks("yaml"))]


def test_snakemake_knows_every_setting(tmp_path):
    """Options of the plugin it knows only where that is installed."""
    from snakemake.cli import get_argument_parser

    known = {k: v for k, v in SETTINGS.items() if not k.startswith("slurm-")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(known | {"executor": "local"}))
    args = get_argument_parser(profiles=[str(tmp_path)]).parse_args([])
    assert (args.jobs, args.retries, args.latency_wait) == (100, 3, 60)
    assert args.set_threads == SETTINGS["set-threads"]


def test_the_plugin_knows_its_settings():
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    options = {name.removeprefix("slurm-").replace("-", "_") for name in SETTINGS if name.startswith("slurm-")}
    assert options
    assert options <= set(plugin.ExecutorSettings.__dataclass_fields__)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids="/".join)
def test_settings_name_rules_and_resources_that_exist(settings):
    assert set(settings.get("set-threads", {})) | set(settings.get("set-resources", {})) <= RULES
    resources = [settings.get("default-resources", {}), *settings.get("set-resources", {}).values()]
    assert set().union(*resources) <= RESOURCES


def test_every_rule_that_uses_a_gpu_has_cores_and_can_share_it():
    assert set(SETTINGS["set-threads"]) == GPU_RULES
    assert set(page.shared_resources()) == GPU_RULES
    text = page.PAGE.read_text()
    assert "for `train`, `distill`, `leak`,\n  `tvl1`, `flow`, `probe`, `attribution` and `detect`" in text
    assert {"train", "distill", "leak", "tvl1", "flow", "probe", "attribution", "detect"} == GPU_RULES


def test_the_page_s_commands_are_those_that_make_test_slurm_runs():
    """Apart from those that are named, which it finds on the page."""
    blocks = page.blocks("sh")
    assert set(page.NOT_RUN) <= set(blocks)
    text = "".join(blocks)
    assert [old for old in page.REPLACED if old not in text] == []
    assert page.BLOCK.sub("", page.PAGE.read_text()).count("```") == 0
