"""The files under .github are valid, and the workflow runs the command that every change must pass."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from orderstream.local.processes.state import checkout

ROOT = checkout()
GITHUB = ROOT / ".github"
WORKFLOW = GITHUB / "workflows" / "ci.yml"
COMMAND = ".ci/run"
SCHEMAS = {
    "workflows/ci.yml": ("vendor.github-workflows", "custom.github-workflows-require-timeout"),
    "ISSUE_TEMPLATE/bug.yml": ("vendor.github-issue-forms",),
    "ISSUE_TEMPLATE/feature.yml": ("vendor.github-issue-forms",),
    "ISSUE_TEMPLATE/config.yml": ("vendor.github-issue-config",),
}
_PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[0-9]+\.[0-9]+\.[0-9]+")
_NAMED_PATH = re.compile(r"(?<![\w/.])(?:docs/[\w./-]*\w|\.ci/\w+|[A-Z_]+\.md)")


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe", pure=True).load(WORKFLOW)
    return content


def test_every_yaml_file_has_a_schema_here() -> None:
    assert {path.relative_to(GITHUB).as_posix() for path in GITHUB.rglob("*.yml")} == set(SCHEMAS)


@pytest.mark.parametrize(("name", "schema"), [(name, schema) for name, all_of in SCHEMAS.items() for schema in all_of])
def test_a_file_keeps_the_schema_of_the_platform(name: str, schema: str) -> None:
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(GITHUB / name)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_ends_with_the_command_that_every_change_must_pass(workflow: dict[str, Any]) -> None:
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == COMMAND
    assert os.access(ROOT / COMMAND, os.X_OK)


def test_the_workflow_runs_for_pull_requests_and_on_main(workflow: dict[str, Any]) -> None:
    assert workflow["on"] == {"push": {"branches": ["main"]}, "pull_request": None}


def test_the_workflow_may_only_read_and_leaves_no_credentials(workflow: dict[str, Any]) -> None:
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in job
    assert job["steps"][0]["with"]["persist-credentials"] is False


def test_the_workflow_names_each_action_by_its_commit_and_version() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text(encoding="utf-8"))
    assert len(used) == 2
    assert [line for line in used if not _PINNED.fullmatch(line)] == []


def test_the_workflow_uses_the_oldest_python_that_is_supported(workflow: dict[str, Any]) -> None:
    (job,) = workflow["jobs"].values()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f">={job['steps'][1]['with']['python-version']}" == project["requires-python"]


@pytest.mark.parametrize("path", sorted([*GITHUB.rglob("*.yml"), *GITHUB.rglob("*.md")]), ids=lambda path: path.name)
def test_every_path_that_a_template_names_exists(path: Path) -> None:
    named = _NAMED_PATH.findall(path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_templates_name_paths() -> None:
    """The pattern of the test above finds what it looks for."""
    named = _NAMED_PATH.findall((GITHUB / "pull_request_template.md").read_text(encoding="utf-8"))
    assert {COMMAND, "docs/bounds.md", "CHANGELOG.md", "docs/decisions"} <= set(named)
