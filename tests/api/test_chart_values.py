"""The chart with the values of the last release, as `helm upgrade --reuse-values` renders it. No API server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "dbranch"
TEMPLATES = sorted((CHART / "templates").glob("*.yaml"))


def values_of_release() -> str:
    """Return the values.yaml of the last release, from its commit."""
    versions = (ROOT / "hack" / "lib" / "versions.sh").read_text(encoding="utf-8")
    commit = re.search(r"^RELEASE_COMMIT=(\w+)$", versions, re.MULTILINE)
    assert commit
    show = ["git", "show", f"{commit[1]}:helm/dbranch/values.yaml"]
    return subprocess.run(show, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_reused_values_of_the_last_release_fail_with_the_option_that_helps(tmp_path: Path) -> None:
    """Helm puts the values of the release in place of the new chart's own values.yaml."""
    chart = shutil.copytree(CHART, tmp_path / "dbranch")
    older = values_of_release()
    (chart / "values.yaml").write_text(older, encoding="utf-8")
    argv = ["helm", "template", "dbranch", str(chart), "--namespace", "system", "--kube-version", "1.35.0"]
    outcome = subprocess.run(argv, check=False, capture_output=True, text=True)
    missing = sorted(
        yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")).keys()
        - yaml.safe_load(older).keys()
    )
    assert outcome.returncode, f"{missing} are missing, and the chart is rendered"
    assert "run helm upgrade with --reset-then-reuse-values" in outcome.stderr
    assert any(f'the value "{section}" of this release is missing' in outcome.stderr for section in missing)


def test_every_template_checks_the_values_first() -> None:
    """Helm renders the templates in no order: the first one that meets a missing value ends with its own error."""
    assert len(TEMPLATES) > 5
    for template in TEMPLATES:
        first = template.read_text(encoding="utf-8").splitlines()[0]
        assert first == '{{- include "dbranch.checkValues" . }}', template.name


def test_an_image_can_be_named_by_its_digest_for_all_three_parts() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    argv = ["helm", "template", "dbranch", str(CHART), "--namespace", "system", "--kube-version", "1.35.0"]
    rendered = subprocess.run(
        [*argv, "--set", f"image.digest={digest}", "--set", "image.tag=v1"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # The controller's, the agents', and the one that the controller gives to the proxies.
    assert rendered.count(f"dbranch-server:v1@{digest}") == 3
    refused = subprocess.run([*argv, "--set", "image.digest=v1"], check=False, capture_output=True, text=True)
    assert refused.returncode and "digest" in refused.stderr
