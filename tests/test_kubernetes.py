"""The manifests for Kubernetes: against its own schemas, and against what they name."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from image_search.settings import Settings, load_settings
from service.app import create_app
from tests.support import ROOT
from worker.shards import Shard

FILES = sorted((ROOT / "kubernetes").glob("*.yaml"))
MANIFESTS = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
# The oldest that has all that they use, and the newest that the library knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def of_kind(kind: str) -> Any:
    [found] = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def pods() -> list[Any]:
    return [of_kind(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])
def test_manifests_have_the_form_that_kubernetes_asks_for(manifest: Any, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_what_is_misspelt_is_found() -> None:
    wrong = {**of_kind("Service"), "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_settings_and_probes_are_those_of_the_programs() -> None:
    for name in of_kind("ConfigMap")["data"]:
        assert name.removeprefix("IMAGE_SEARCH_").lower() in Settings.model_fields, name
    paths = set(create_app(load_settings()).openapi()["paths"])
    [container] = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
    metrics = (ROOT / "service" / "metrics.py").read_text()
    [metric] = of_kind("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert f'"{metric["pods"]["metric"]["name"]}"' in metrics


def test_the_job_numbers_all_of_its_shards() -> None:
    job = of_kind("Job")["spec"]
    [container] = job["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["JOB_COMPLETIONS"] == str(job["completions"]) == str(job["parallelism"])
    for index in range(job["completions"]):
        shard = Shard.of_environment({**variables, "JOB_COMPLETION_INDEX": str(index)})
        assert shard is not None
        assert (shard.number, shard.count) == (index, job["completions"])


def test_images_are_those_that_compose_builds() -> None:
    built = "".join(file.read_text() for file in sorted(ROOT.glob("docker-compose*.yml")))
    for pod in pods():
        [container] = pod["containers"]
        assert f"image: {container['image']}\n" in built
    for name in re.findall(r"image-search-[\w-]+:[\d.]+", "".join(f.read_text() for f in FILES)):
        assert f"image: {name}\n" in built


def test_containers_may_do_little() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        [container] = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in pod["volumes"]}


def test_labels_select_the_pods() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert of_kind("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
