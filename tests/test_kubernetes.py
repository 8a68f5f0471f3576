"""The manifests for Kubernetes: against its own schemas, and against what they name."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from image_search.settings import Settings, load_settings
from service.app import create_app
from tests.support import ROOT
from worker.__main__ import make_parser
from worker.shards import Shard

FILES = sorted((ROOT / "kubernetes").glob("*.yaml"))
ALL = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
MANIFESTS = [one for one in ALL if one["kind"] != "RayJob"]
[RAY_JOB] = [one for one in ALL if one["kind"] == "RayJob"]
# The oldest that has all that they use, and the newest that the library knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def of_kind(kind: str) -> Any:
    [found] = [one for one in MANIFESTS if one["kind"] == kind]
    return found


def ray_groups() -> list[Any]:
    cluster = RAY_JOB["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> list[Any]:
    plain = [of_kind(kind)["spec"]["template"]["spec"] for kind in ("Deployment", "Job")]
    return plain + [group["template"]["spec"] for group in ray_groups()]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: one["kind"])
def test_manifests_have_the_form_that_kubernetes_asks_for(manifest: Any, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


# What the operator's definition of a RayJob is generated from: the fields, their types, and which
# are required, of github.com/ray-project/kuberay, ray-operator/apis/ray/v1/rayjob_types.go and
# raycluster_types.go (v1.4); the definition itself, 1.3 MB, is mostly that of pods.
RAY_FIELDS: dict[str, dict[str, type]] = {
    "RayJob": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": dict,
        "submitterPodTemplate": dict,
        "metadata": dict,
        "clusterSelector": dict,
        "submitterConfig": dict,
        "managedBy": str,
        "deletionStrategy": dict,
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": str,
        "entrypointResources": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
    },
    "RayCluster": {
        "headGroupSpec": dict,
        "workerGroupSpecs": list,
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": dict,
        "headServiceAnnotations": dict,
        "suspend": bool,
    },
    "head": {
        "serviceType": str,
        "headService": dict,
        "enableIngress": bool,
        "rayStartParams": dict,
        "template": dict,
    },
    "worker": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "numOfHosts": int,
        "rayStartParams": dict,
        "template": dict,
        "scaleStrategy": dict,
    },
}
RAY_REQUIRED = {
    "RayJob": set[str](),
    "RayCluster": {"headGroupSpec"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def wrong_fields(kind: str, value: dict[str, Any]) -> list[str]:
    known = RAY_FIELDS[kind]
    wrong = [name for name, of in value.items() if type(of) is not known.get(name)]
    return wrong + sorted(RAY_REQUIRED[kind] - value.keys())


def test_the_job_of_ray_has_the_fields_that_its_operator_knows() -> None:
    assert (RAY_JOB["apiVersion"], set(RAY_JOB)) == (
        "ray.io/v1",
        {"apiVersion", "kind", "metadata", "spec"},
    )
    cluster = RAY_JOB["spec"]["rayClusterSpec"]
    assert wrong_fields("RayJob", RAY_JOB["spec"]) == []
    assert RAY_JOB["spec"]["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode"}
    assert wrong_fields("RayCluster", cluster) == []
    assert wrong_fields("head", cluster["headGroupSpec"]) == []
    for group in cluster["workerGroupSpecs"]:
        assert wrong_fields("worker", group) == []
    for group in ray_groups():
        assert {type(value) for value in group["rayStartParams"].values()} <= {str}
    assert wrong_fields("head", {"template": {}, "raystartparams": {}}) == [
        "raystartparams",
        "rayStartParams",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_ray_have_the_form_that_kubernetes_asks_for(version: str) -> None:
    for group in ray_groups():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_the_job_of_ray_is_a_command_of_the_worker_with_the_ray_that_was_tested() -> None:
    program, _, _ = RAY_JOB["spec"]["entrypoint"].partition(" || ")
    words = program.split()
    assert words[:3] == ["python", "-m", "worker"]
    assert vars(make_parser().parse_args(words[3:]))["on"] == "ray"
    [tested] = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert RAY_JOB["spec"]["rayClusterSpec"]["rayVersion"] == tested
    assert f"ray[default]=={tested}'" in (ROOT / "kubernetes" / "Dockerfile.ray").read_text()


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
    # Of the worker that compose builds.
    of_ray = (ROOT / "kubernetes" / "Dockerfile.ray").read_text()
    built += "".join(f"image: {name}\n" for name in re.findall(r"-t (\S+)", of_ray))
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
