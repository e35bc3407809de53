"""The container and the Kubernetes example: linted, and what they say is true of the server that they start."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.routing import Route

from vigil_serving.server.app import create_app
from vigil_serving.server.main import FLUSH_SECONDS
from vigil_serving.server.service import Service
from vigil_serving.server.settings import ServerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = ("kubernetes.yaml", "secret.yaml")
SHADOW_SECONDS = 5
"""Time that closing the shadow takes at most."""
KEY = "deployed-key-0123456789"


def documents(name: str) -> dict[str, Any]:
    """Return the objects of a manifest by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    return {kind: document for name in (*MANIFESTS, "podmonitor.yaml") for kind, document in documents(name).items()}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their arguments."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line and line[0] != "#"]


def instruction(dockerfile: list[tuple[str, str]], name: str) -> str:
    return [arguments for found, arguments in dockerfile if found == name][-1]


def option(container: dict[str, Any], name: str) -> str:
    [value] = [argument.partition("=")[2] for argument in container["args"] if argument.startswith(f"{name}=")]
    return value


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    ran = run(tool("hadolint"), "--failure-threshold", "info", str(DEPLOY / "Dockerfile"))
    assert ran.returncode == 0, ran.stdout
    planted = tmp_path / "Dockerfile"
    planted.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install x\n")
    assert "DL3004" in run(tool("hadolint"), str(planted)).stdout, "the linter runs"


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_objects_have_their_schemas(name: str, tmp_path: Path) -> None:
    ran = run(tool("kubernetes-validate"), "--strict", str(DEPLOY / name))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    planted = tmp_path / name
    planted.write_text((DEPLOY / name).read_text().replace("metadata:", "metdata:", 1))
    assert run(tool("kubernetes-validate"), "--strict", str(planted)).returncode != 0, "the linter runs"


def test_dockerfile_installs_only_the_server_and_runs_it_without_root(dockerfile: list[tuple[str, str]]) -> None:
    [install] = [arguments for name, arguments in dockerfile if name == "RUN" and "pip install" in arguments]
    assert '".[${EXTRAS}]"' in install
    assert "--constraint constraints.txt" in install
    assert instruction(dockerfile, "ARG") == "EXTRAS=serve"
    assert instruction(dockerfile, "USER") == "65532:65532"
    assert all(re.search(r":\d+\.\d+\.\d+-", arguments) for name, arguments in dockerfile if name == "FROM"), "pinned tags"
    assert json.loads(instruction(dockerfile, "ENTRYPOINT")) == ["vigil", "serve"]


def test_dockerfile_context_has_what_the_package_is_built_from(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {package.partition("/")[0] for package in packages}
    needed |= {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml", "constraints.txt"}
    listed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in listed if line.startswith("!")} == needed
    assert "*" in listed


@pytest.fixture(scope="module")
def deployed(exported, container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The server with the container's arguments; only the port, the folders and the namespace are of this test."""
    folder = tmp_path_factory.mktemp("deployed")
    keys = folder / "keys"
    keys.write_text(f"# clients\n{KEY}\n")
    keys.chmod(0o440)
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    places = {
        "/bundle": str(exported.bundle),
        "--port=8000": f"--port={port}",
        "--api-key-file=/secrets/keys": f"--api-key-file={keys}",
    }
    arguments = [places.get(argument, argument).replace("$(NAMESPACE)", "moderation") for argument in container["args"]]
    assert set(places) <= set(container["args"])
    command = [sys.executable, "-W", "error", "-c", "from vigil.cli import main; main()", "serve", *arguments]
    environment = {**os.environ, "VIGIL_ADMIN_TOKEN": "admin-token-0123456789"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + 60
        while "ready after" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert "WARNING" not in (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_container_answers_its_probes_under_the_pods_address(container: dict[str, Any], deployed: tuple[str, int]) -> None:
    base, _ = deployed
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]["httpGet"]
        assert ports[probe["port"]] == int(option(container, "--port"))
        for host in ("10.0.3.7:8000", "[fd00::7]:8000", "kube-probe"):
            assert httpx.get(base + probe["path"], headers={"Host": host}).status_code == 200
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live", "a pod that loads or drains must not be restarted"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_container_answers_clients_of_the_service(
    objects: dict[str, Any], container: dict[str, Any], deployed: tuple[str, int]
) -> None:
    base, _ = deployed
    service, body = objects["Service"], {"items": [{"id": "a", "text": ["call now"]}]}
    [port] = service["spec"]["ports"]
    assert port["targetPort"] in {named["name"] for named in container["ports"]}
    assert service["spec"]["selector"].items() <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    name = service["metadata"]["name"]
    statuses = {
        host: httpx.post(f"{base}/v1/score", json=body, headers={"Host": host, "Authorization": f"Bearer {KEY}"}).status_code
        for host in (
            name,
            f"{name}.moderation",
            f"{name}.moderation.svc",
            f"{name}.moderation.svc.cluster.local",
            "10.0.3.7:8000",
            "x.example",
        )
    }
    assert list(statuses.values()) == [200, 200, 200, 200, 200, 421]
    assert httpx.post(f"{base}/v1/score", json=body).status_code == 401


def test_podmonitor_scrapes_with_a_key_of_the_secret(
    objects: dict[str, Any], container: dict[str, Any], deployed: tuple[str, int]
) -> None:
    base, _ = deployed
    monitor, secret = objects["PodMonitor"]["spec"], objects["Secret"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert monitor["selector"]["matchLabels"].items() <= objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert endpoint["port"] in {named["name"] for named in container["ports"]}
    reference = endpoint["authorization"]["credentials"]
    assert reference["name"] == secret["metadata"]["name"]
    assert secret["stringData"][reference["key"]] in secret["stringData"]["keys"].splitlines()
    assert httpx.get(base + endpoint["path"]).status_code == 401
    scraped = httpx.get(
        base + endpoint["path"], headers={"Authorization": f"{endpoint['authorization']['type']} {KEY}", "Host": "10.0.3.7:8000"}
    )
    assert scraped.status_code == 200
    assert "vigil_bundle_info" in scraped.text


def test_dockerfile_healthcheck_and_command_are_those_of_the_server(
    dockerfile: list[tuple[str, str]], deployed: tuple[str, int], container: dict[str, Any]
) -> None:
    base, _ = deployed
    command = instruction(dockerfile, "CMD")
    assert json.loads(command) == ["/bundle", "--host", "0.0.0.0", "--port", "8000"]
    assert instruction(dockerfile, "EXPOSE") == "8000" == option(container, "--port")
    _, _, check = instruction(dockerfile, "HEALTHCHECK").partition("CMD ")
    python, *arguments = json.loads(check)
    assert python == "python"
    healthy = [argument.replace("http://127.0.0.1:8000", base) for argument in arguments]
    assert run(sys.executable, *healthy).returncode == 0
    closed = [argument.replace("127.0.0.1:8000", "127.0.0.1:9") for argument in arguments]
    assert run(sys.executable, *closed).returncode == 1
    assert shlex.join(healthy) != shlex.join(closed)


def test_probes_and_metrics_are_routes(container: dict[str, Any], objects: dict[str, Any], tmp_path: Path) -> None:
    routes = {route.path for route in create_app(Service(ServerSettings(tmp_path))).routes if isinstance(route, Route)}
    paths = {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths.add(objects["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["path"])
    assert paths <= routes


def test_pod_has_time_to_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    [_, pause] = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = float(option(container, "--drain-seconds"))
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + drain + FLUSH_SECONDS + SHADOW_SECONDS
    readiness = container["readinessProbe"]
    assert float(pause) >= readiness["periodSeconds"] * 2, "a probe sees that the pod is not ready before requests are refused"


def test_pod_runs_without_privileges(pod: dict[str, Any], container: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == instruction(dockerfile, "USER")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    assert not re.search(r":(latest)?$", container["image"])


def test_pod_uses_secrets_that_exist_and_are_not_readable_by_others(
    objects: dict[str, Any], pod: dict[str, Any], container
) -> None:
    secret = objects["Secret"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    keys = volumes["keys"]["secret"]
    assert keys["secretName"] == secret["metadata"]["name"]
    assert {entry["key"] for entry in keys["items"]} <= secret["stringData"].keys()
    assert keys["defaultMode"] & 0o007 == 0
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "keys"]
    assert option(container, "--api-key-file") in {f"{mount['mountPath']}/{entry['path']}" for entry in keys["items"]}
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is not None:
            assert reference["name"] == secret["metadata"]["name"]
            assert reference["key"] in secret["stringData"]


def test_environment_variables_are_those_that_the_server_reads(container: dict[str, Any], repository: Path) -> None:
    read = set(re.findall(r'os\.environ\.get\("(VIGIL_\w+)"', (repository / "app/vigil/cli/serve.py").read_text()))
    assert read == {"VIGIL_API_KEY", "VIGIL_ADMIN_TOKEN"}
    named = {variable["name"] for variable in container["env"]}
    assert {name for name in named if name.startswith("VIGIL_")} <= read
    used = {name for argument in container["args"] for name in re.findall(r"\$\((\w+)\)", argument)}
    assert used <= named


def test_placeholders_of_the_secret_are_refused(objects: dict[str, Any], tmp_path: Path) -> None:
    """Whoever forgets to replace them gets a pod that does not start, not one with a known key."""
    from vigil_data.errors import UserError

    file = tmp_path / "keys"
    file.write_text(objects["Secret"]["stringData"]["keys"])
    with pytest.raises(UserError, match="keys:2: must have at least 16"):
        Service(ServerSettings(tmp_path, host="0.0.0.0", api_key_file=file))
    with pytest.raises(UserError, match="VIGIL_ADMIN_TOKEN: must have at least 16"):
        ServerSettings(tmp_path, admin_token=objects["Secret"]["stringData"]["admin-token"])


def test_autoscaler_and_budget_are_of_the_deployment(objects: dict[str, Any], container: dict[str, Any]) -> None:
    deployment = objects["Deployment"]
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert objects["PodDisruptionBudget"]["spec"]["selector"] == deployment["spec"]["selector"]
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    assert option(container, "--threads") == container["resources"]["limits"]["cpu"], "more threads than cores only wait"
