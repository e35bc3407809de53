"""OpenAPI document: schemathesis tests the server against it, with valid and invalid data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.routing import Route

from vigil_serving.server.app import create_app
from vigil_serving.server.openapi import openapi_document

from .conftest import TOKEN, ServerProcess

# Only what a JSON Schema cannot express is excepted here: limits on the media of all items of a request together, elements of
# the KServe input (JSON within strings, as many as the shape has), and paths on the server that are not bundles.
CONFIG = """
[generation]
with-security-parameters = false
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 404, 413]
negative_data_rejection.expected-statuses = [400, 401, 404, 405, 413, 415, 422]
[auth.openapi]
admin = {{ bearer = "{token}" }}
[[operations]]
include-path-regex = "^/v2/models"
parameters = {{ "path.name" = "tiny", "path.version" = "{version}" }}
[[operations]]
include-path-regex = "/infer$"
parameters = {{ "path.name" = "tiny", "path.version" = "{version}" }}
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 413, 422]
[[operations]]
include-path = "/v1/reload"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
"""
# A form has no types: a value of a wrong type arrives as the bytes of a text or a file, which is valid. A schema cannot say that
# a text's start is not after its end.
HOOKS = """
import schemathesis

def is_ordered(text):
    times = [text.get(name) for name in ("start", "end")] if isinstance(text, dict) else [None]
    return not all(isinstance(time, int | float) for time in times) or times[0] <= times[-1]

def texts(body):
    for item in (body.get("items") if isinstance(body, dict) else None) or ():
        given = item.get("text") if isinstance(item, dict) else None
        yield from given if isinstance(given, list) else ()

@schemathesis.hook
def filter_case(context, case):
    if not all(map(is_ordered, texts(case.body))):
        return False
    return case.media_type != "multipart/form-data" or case.meta is None or not case.meta.generation.mode.is_negative
"""


@pytest.mark.prove
def test_openapi_document_passes_schemathesis(server: ServerProcess, proofs, tmp_path: Path) -> None:
    version = server.get("/v1/bundle").json()["version"]
    (tmp_path / "schemathesis.toml").write_text(CONFIG.format(token=TOKEN, version=version))
    (tmp_path / "hooks.py").write_text(HOOKS)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.base}/openapi.json"]
    command += [
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        str(proofs(5, 150)),
        "--continue-on-failure",
        "--no-color",
    ]
    command += ["--seed", "5", "--request-timeout", "20", "--suppress-health-check", "all"]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env={"SCHEMATHESIS_HOOKS": "hooks", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    [tried] = re.findall(r"(\d+) generated", ran.stdout)
    assert "Tested: 16" in ran.stdout
    print(f"\nschemathesis: {tried} requests, no failures")
    assert int(tried) > 300
    assert server.get("/health/ready").status_code == 200


def test_openapi_document_has_every_route_and_no_other(make_service) -> None:
    service = make_service()
    app = create_app(service)
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.path != "/openapi.json"
        for method in route.methods
    }
    described = {
        (path, method)
        for path, operations in openapi_document(service.settings)["paths"].items()
        for method in operations
        if method in {"get", "post", "put", "delete"}
    }
    assert routes == described


def test_openapi_document_references_exactly_its_schemas(make_service) -> None:
    description = openapi_document(make_service().settings)
    names = set(re.findall(r"#/components/schemas/(\w+)", str(description)))
    assert names <= set(description["components"]["schemas"])
    assert set(description["components"]["schemas"]) <= names
    operations = [o for p in description["paths"].values() for m, o in p.items() if m in {"get", "post"}]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["description"].endswith(".") for operation in operations)


def test_openapi_document_asks_for_the_key_where_the_server_does(make_service) -> None:
    free, keyed = (openapi_document(make_service(api_keys=keys).settings)["paths"] for keys in ((), ("a-key-0123456789ab",)))
    assert [o for p in free.values() for m, o in p.items() if m in {"get", "post"} and o.get("security") == [{"key": []}]] == []
    without = {
        path
        for path, item in keyed.items()
        for m, o in item.items()
        if m in {"get", "post"} and {"key": []} not in o.get("security", [])
    }
    assert without == {"/", "/v1/reload", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
    assert all(
        "401" in o["responses"]
        for path, item in keyed.items()
        if path not in without
        for m, o in item.items()
        if m in {"get", "post"}
    )
