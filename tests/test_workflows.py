"""The workflows of GitHub: they run fixed versions of actions, with no more rights than they need."""

import re

import pytest
import yaml

from d3d.study.records import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.y*ml"))
# The jobs that may do more than read the repository, and what.
RIGHTS = {("ci.yml", "publish"): {"pages": "write", "id-token": "write"}}


def test_there_are_workflows():
    assert "ci.yml" in {path.name for path in WORKFLOWS}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_every_action_is_pinned_to_a_commit_whose_version_is_named(path):
    """A tag can be moved to other code, a commit cannot."""
    lines = [line.strip() for line in path.read_text().splitlines() if re.search(r"\buses\s*:", line)]
    assert lines
    for line in lines:
        assert re.fullmatch(r"(- )?uses: [\w-]+(/[\w-]+)+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version():
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, pin in re.findall(r"uses: (\S+)@(.+)$", path.read_text(), re.MULTILINE):
            pins.setdefault(action, set()).add(pin)
    assert {action: versions for action, versions in pins.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_jobs_may_only_read_unless_they_publish(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) == RIGHTS.get((path.name, name), {}), name
        if (path.name, name) in RIGHTS:
            # What has rights runs nothing of the repository, and never for a pull request.
            assert job["if"] == "github.ref == 'refs/heads/main'"
            assert all("run" not in step and "checkout" not in step["uses"] for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_checkout_leaves_no_credentials_behind(path):
    steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
