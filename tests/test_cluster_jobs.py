"""The job files of examples/cluster are what their schedulers read, and their commands exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.test_documents import parse

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_the_shell_reads_the_scripts(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda file: file.name)
def test_the_manifests_are_yaml(manifest):
    job = yaml.safe_load(manifest.read_text())
    assert {"apiVersion", "kind", "metadata", "spec"} <= job.keys()
    if job["kind"] == "RayJob":
        assert "std-cli[ray]" in yaml.safe_load(job["spec"]["runtimeEnvYAML"])["pip"][0]


@pytest.mark.parametrize("file", [*SCRIPTS, *MANIFESTS], ids=lambda file: file.name)
def test_their_commands_are_parsed(file):
    text = re.sub(r"\\\n\s*", " ", file.read_text())
    text = text.replace("$i/$count", "0/2").replace("$JOB_COMPLETION_INDEX", "0")
    found = re.findall(r"(?:^|exec |: |-- )\s*std ((?:stylize|join) [^&\n]*)", text, re.MULTILINE)
    found += re.findall(r"CUDA_VISIBLE_DEVICES=\$i std (stylize [^&\n]*)", text)
    assert found
    for command in found:
        parse(shlex.split(command))
