"""Who may use the server: API keys, hosts, origins, and when they are refused."""

import asyncio
import json
import logging
import os
import re
import string
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_serving.protocol.errors import RequestError
from vigil_serving.server import access
from vigil_serving.server.access import AccessControl, ApiKeys, parse_authority
from vigil_serving.server.app import create_app
from vigil_serving.server.settings import ServerSettings

from .conftest import TOKEN, until

OLD, NEW = "old-key-0123456789", "new-key-0123456789"
BODY = {"items": [{"id": "a", "text": ["call now"]}]}
TENSOR = {"inputs": [{"name": "item", "datatype": "BYTES", "shape": [1], "data": [json.dumps(BODY["items"][0])]}]}


def scope(path: str = "/v1/bundle", method: str = "GET", **headers: str | list[str]) -> dict:
    pairs = [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, values in headers.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    return {"type": "http", "path": path, "method": method, "headers": pairs}


def status(control: AccessControl, given: dict) -> int:
    """Return the status with which a request is refused, or 200."""
    try:
        control.check(given)
    except RequestError as refused:
        return refused.status
    return 200


@asynccontextmanager
async def client_of(service):
    app = create_app(service)
    async with app.router.lifespan_context(app):
        await until(lambda: service.models.ready)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield client


def run(service, work):
    async def main():
        async with client_of(service) as client:
            return await work(client)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST", "localhost.", "tools.localhost", "127.0.0.1", "127.8.0.1:1", "[::1]",
     "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"],
)  # fmt: skip
def test_access_allows_loopback_names_by_default(host: str) -> None:
    assert status(AccessControl("127.0.0.1"), scope(host=host)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "notlocalhost", "127.0.0.1.evil.example", "192.0.2.7",
     "192.0.2.7:8000", "[2001:db8::7]", "[2001:db8::7]:8000", "0.0.0.0", "127.1"],
)  # fmt: skip
def test_access_refuses_foreign_hosts_by_default(host: str) -> None:
    assert status(AccessControl("127.0.0.1"), scope(host=host)) == 421
    assert status(AccessControl("::1"), scope(host=host)) == 421


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "localhost:port", "localhost:", "[::1", "::1", "[::1]x", "[::zz]", "user@localhost", "localhost/x", "höst"],
)
def test_access_refuses_malformed_hosts(host: str) -> None:
    assert status(AccessControl("127.0.0.1"), scope(host=host)) == 400


def test_access_refuses_missing_and_repeated_hosts() -> None:
    control = AccessControl("127.0.0.1")
    assert status(control, scope()) == 400
    assert status(control, scope(host=["localhost", "evil.example"])) == 400


@pytest.mark.parametrize(
    ("bound_to", "host", "expected"),
    [
        ("0.0.0.0", "10.1.2.3:8000", 200),
        ("0.0.0.0", "[2001:db8::7]:8000", 200),
        ("::", "10.1.2.3", 200),
        ("0.0.0.0", "evil.example", 421),
        ("10.1.2.3", "10.1.2.3:8000", 200),
        ("10.1.2.3", "10.1.2.4:8000", 421),
        ("10.1.2.3", "localhost", 200),
        ("2001:db8::7", "[2001:DB8:0::7]", 200),
        ("node7", "NODE7:8000", 200),
        ("node7", "node8", 421),
    ],
)
def test_access_allows_the_address_that_the_server_listens_on(bound_to: str, host: str, expected: int) -> None:
    assert status(AccessControl(bound_to), scope(host=host)) == expected


@pytest.mark.parametrize(
    ("allowed", "host", "expected"),
    [
        ("vigil.example.com", "vigil.example.com", 200),
        ("Vigil.Example.com", "vigil.example.com:8443", 200),
        ("vigil.example.com", "a.vigil.example.com", 421),
        ("*.example.com", "a.b.example.com", 200),
        ("*.example.com", "example.com", 421),
        ("*.example.com", "badexample.com", 421),
        ("*", "anything.example", 200),
        ("2001:db8::7", "[2001:db8::7]:1", 200),
        ("[2001:db8::7]", "[2001:db8::7]", 200),
    ],
)
def test_access_allows_listed_hosts(allowed: str, host: str, expected: int) -> None:
    assert status(AccessControl("127.0.0.1", hosts=[allowed]), scope(host=host)) == expected


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://localhost:8000", "localhost:8000", 200),
        ("http://LOCALHOST:8000", "localhost:8000", 200),
        ("http://localhost", "localhost", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://localhost", "localhost", 200),  # a proxy ends TLS
        ("https://localhost", "localhost:443", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://localhost:3000", "localhost:8000", 403),  # another program of this machine
        ("http://127.0.0.1:8000", "localhost:8000", 403),
        ("https://evil.example", "localhost:8000", 403),
        ("http://evil.example:8000", "localhost:8000", 403),
        ("null", "localhost:8000", 403),
        ("", "localhost:8000", 403),
        ("file://", "localhost:8000", 403),
        ("ftp://localhost:8000", "localhost:8000", 403),
        ("http://localhost:8000/x", "localhost:8000", 403),
        ("https://app.example.com", "localhost:8000", 200),
        ("https://app.example.com:443", "localhost:8000", 200),
        ("http://app.example.com", "localhost:8000", 403),
        ("https://app.example.com:8443", "localhost:8000", 403),
        ("https://a.tools.example.com", "localhost:8000", 200),
        ("https://tools.example.com", "localhost:8000", 403),
    ],
)
def test_access_compares_origins(origin: str, host: str, expected: int) -> None:
    control = AccessControl("127.0.0.1", origins=["https://app.example.com", "https://*.tools.example.com"])
    assert status(control, scope(host=host, origin=origin)) == expected


@given(st.text(string.printable, max_size=30), st.text(string.printable, max_size=30))
def test_access_never_fails_and_allows_only_loopback_names(host: str, origin: str) -> None:
    found = status(AccessControl("127.0.0.1"), scope(host=host, origin=origin))
    assert found in {200, 400, 403, 421}
    if found == 200:
        name = re.sub(r":\d*$", "", host.lower()).strip("[]").removesuffix(".")
        assert name in {"localhost", "::1"} or name.startswith("127.") or name.endswith(".localhost")


def test_access_opens_health_to_everyone() -> None:
    control = AccessControl("127.0.0.1", ApiKeys([OLD]))
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        for headers in ({}, {"host": "10.1.2.3:8000"}, {"host": "evil.example"}, {"host": "localhost", "origin": "null"}):
            assert status(control, scope(path, **headers)) == 200


@pytest.mark.parametrize("text", ["http://a.example", "a.example:80", "a b", "", "a.*.example", "*a.example", "**", "[::x]"])
def test_access_refuses_hosts_of_another_form(text: str) -> None:
    with pytest.raises(UserError, match=r"--allow-host .*: must be a name"):
        AccessControl("127.0.0.1", hosts=[text])


@pytest.mark.parametrize("text", ["a.example", "https://a.example/", "https://", "null", "*", "https://*", "https://a.*.example"])
def test_access_refuses_origins_of_another_form(text: str) -> None:
    with pytest.raises(UserError, match=r"--allow-origin .*: must be a scheme"):
        AccessControl("127.0.0.1", origins=[text])


def test_parse_authority_normalises_names_and_addresses() -> None:
    assert parse_authority("Vigil.Example.com.:8443") == ("vigil.example.com", 8443)
    assert parse_authority("[2001:DB8:0::7]") == ("2001:db8::7", None)


def test_api_keys_accept_any_of_several_and_nothing_else() -> None:
    keys = ApiKeys([OLD, NEW])
    assert [keys.accept(f"Bearer {key}") for key in (OLD, NEW)] == [True, True]
    assert keys.accept(f"bearer   {OLD} ")
    for wrong in (
        "",
        OLD,
        f"Basic {OLD}",
        "Bearer",
        "Bearer ",
        f"Bearer {OLD}x",
        f"Bearer {OLD[:-1]}",
        "Bearer \xff\xfe",
        f"Bearer {OLD} {NEW}",
    ):
        assert not keys.accept(wrong)


def test_api_keys_compare_with_every_key_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    keys = ApiKeys([OLD, NEW, "a-longer-key-" + "x" * 100])
    for given_key in (OLD, "short", "y" * 500):
        compared.clear()
        keys.accept(f"Bearer {given_key}")
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"keys: no API keys; write one a line"),
        ("\n# only a comment\n", r"keys: no API keys"),
        (f"{OLD}\n\nshort-secret\n", r"keys:3: must have at least 16"),
        (f"{OLD} two words\n", r"keys:1: must have at least 16"),
        ("ключ-" * 10, r"keys:1: must have"),
    ],
)
def test_api_keys_refuse_a_file_and_name_the_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as refused:
        ApiKeys(path=file)
    for word in content.split():
        assert word.startswith("#") or len(word) < 5 or word not in str(refused.value)


def test_api_keys_refuse_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing: cannot read the API keys: No such file"):
        ApiKeys(path=tmp_path / "nothing")


def test_api_keys_follow_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(access, "FILE_CHECK_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    logging.getLogger("vigil.serve").propagate = True
    file = tmp_path / "keys"
    file.write_text(f"# rotated in May\n{OLD}\n")
    keys = ApiKeys(path=file)

    def accepted() -> list[bool]:
        return [keys.accept(f"Bearer {key}") for key in (OLD, NEW)]

    assert accepted() == [True, False]
    file.write_text(f"{OLD}\n{NEW}\n")
    assert accepted() == [True, True]
    replacement = tmp_path / "replacement"  # as Kubernetes switches the files of a Secret
    replacement.write_text(f"{NEW}\n")
    replacement.replace(file)
    assert accepted() == [False, True]
    file.write_text("short")
    assert accepted() == [False, True], "the previous keys stay"
    assert f"API keys not replaced: {file}:1: must have at least 16" in caplog.text
    file.unlink()
    assert accepted() == [False, True]
    file.write_text(f"{OLD}\n")
    assert accepted() == [True, False]
    assert OLD not in caplog.text
    assert NEW not in caplog.text


def test_api_keys_check_their_file_no_more_than_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = ApiKeys(path=file)
    keys.accept("")
    file.write_text(NEW)
    assert not keys.accept(f"Bearer {NEW}")
    keys.reread()
    assert keys.accept(f"Bearer {NEW}")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_api_keys_warn_if_everyone_can_read_the_file(tmp_path: Path, caplog, mode: int, warned: bool) -> None:
    logging.getLogger("vigil.serve").propagate = True
    file = tmp_path / "keys"
    file.write_text(OLD)
    file.chmod(mode)
    ApiKeys(path=file)
    assert ("every user of this machine can access the API keys" in caplog.text) == warned


def test_server_asks_for_a_key_on_every_route_but_health_page_and_reload(make_service) -> None:
    service = make_service(api_keys=(OLD, NEW), admin_token=TOKEN)

    async def work(client: httpx.AsyncClient):
        found = {}
        for path, methods in json.loads((await client.get("/openapi.json", headers={"Authorization": f"Bearer {NEW}"})).text)[
            "paths"
        ].items():
            for method in methods.keys() & {"get", "post"}:
                concrete = path.replace("{name}", "fake").replace("{version}", "d" * 12)
                body = {} if method == "get" else {"json": TENSOR if "infer" in path else BODY}
                answers = [
                    await client.request(method, concrete, headers=headers, **body)
                    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {OLD}"})
                ]
                found[path] = answers
        found["/nowhere"] = [await client.get("/nowhere")]
        return found, await client.get("/metrics", headers={"Authorization": f"Bearer {OLD}"})

    found, metrics = run(service, work)
    open_paths = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/"}
    for path, answers in found.items():
        statuses = [answer.status_code for answer in answers]
        if path in open_paths:
            assert statuses == [200, 200, 200], path
        elif path == "/v1/reload":
            assert statuses == [401, 401, 401], "an API key is not the admin token"
        else:
            assert statuses == [401, 401, 200][: len(statuses)], path
            assert answers[0].headers["WWW-Authenticate"] == "Bearer"
            assert answers[0].json() == {"error": "Authorization: send an API key as Bearer"}
    assert 'vigil_refused_total{reason="unauthorised"}' in metrics.text
    assert OLD not in metrics.text


def test_server_refuses_before_it_reads_the_body(make_service) -> None:
    service = make_service(api_keys=(OLD,))

    async def body():
        pytest.fail("the body was read")
        yield b""

    async def work(client: httpx.AsyncClient):
        answer = await client.post("/v1/score", content=body())
        return answer.status_code, service.admission.admitted

    assert run(service, work) == (401, 0)


def test_server_names_host_and_origin_once_and_does_not_repeat_them(make_service) -> None:
    async def work(client: httpx.AsyncClient):
        return [
            await client.post("/v1/score", json=BODY, headers={"Host": "secret.example"}),
            await client.post("/v1/score", json=BODY, headers={"Origin": "https://secret.example"}),
            await client.post("/v1/score", files={"text": (None, "a")}, headers={"Origin": "https://secret.example"}),
            await client.post("/v2/models/fake/infer", json=TENSOR, headers={"Host": "secret.example"}),
            await client.get("/", headers={"Host": "secret.example"}),
            await client.get("/metrics", headers={"Host": "secret.example"}),
        ]

    answers = run(make_service(), work)
    assert [answer.status_code for answer in answers] == [421, 403, 403, 421, 421, 421]
    assert "--allow-host NAME" in answers[0].json()["error"]
    assert "--allow-origin URL" in answers[1].json()["error"]
    for answer in answers:
        assert "secret" not in answer.text
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_server_lets_pages_of_an_allowed_origin_read_responses(make_service) -> None:
    """Without these headers a browser would send the request and keep the response from the page."""
    service = make_service(api_keys=(OLD,), allow_origins=("https://app.example.com",))
    origin = {"Origin": "https://app.example.com"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}

    async def work(client: httpx.AsyncClient):
        return [
            await client.options("/v1/score", headers={**origin, **ask}),
            await client.post("/v1/score", json=BODY, headers={**origin, "Authorization": f"Bearer {OLD}"}),
            await client.post("/v1/score", json=BODY, headers=origin),
            await client.options("/v1/score", headers={"Origin": "https://evil.example", **ask}),
            await client.options("/v1/score", headers=origin),
            await client.post("/v1/score", json=BODY, headers={"Authorization": f"Bearer {OLD}"}),
        ]

    preflight, score, keyless, foreign, no_preflight, own = run(service, work)
    assert [answer.status_code for answer in (preflight, score, keyless, foreign, no_preflight)] == [204, 200, 401, 403, 401]
    for answer in (preflight, score, keyless):
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert answer.headers["Vary"] == "Origin"
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    assert "Access-Control-Allow-Origin" not in foreign.headers
    assert "Access-Control-Allow-Origin" not in own.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "node7", "2001:db8::7"])
def test_settings_need_a_key_or_no_auth_on_other_addresses(tmp_path: Path, host: str) -> None:
    with pytest.raises(UserError, match=rf"--host {re.escape(host)}: .*VIGIL_API_KEY or --api-key-file, or pass --no-auth"):
        ServerSettings(tmp_path, host=host)
    ServerSettings(tmp_path, host=host, api_keys=(OLD,))
    ServerSettings(tmp_path, host=host, api_key_file=tmp_path / "keys")
    ServerSettings(tmp_path, host=host, no_auth=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_settings_need_no_key_on_loopback_addresses(tmp_path: Path, host: str) -> None:
    ServerSettings(tmp_path, host=host)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_keys": ("short-secret",)}, "VIGIL_API_KEY, key 1: must have"),
        ({"api_keys": (OLD, "short-secret")}, "VIGIL_API_KEY, key 2: must have"),
        ({"api_keys": (OLD,), "api_key_file": "x"}, "--api-key-file x: VIGIL_API_KEY is set too"),
        ({"api_keys": (OLD,), "no_auth": True}, "--no-auth: API keys are given"),
        ({"tls_cert": "x"}, "--tls-cert and --tls-key"),
        ({"tls_key": "x"}, "--tls-cert and --tls-key"),
    ],
)
def test_settings_refuse_inconsistent_access(tmp_path: Path, settings, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        ServerSettings(tmp_path, **settings)
    assert "secret" not in str(refused.value)


def test_settings_do_not_show_secrets(tmp_path: Path) -> None:
    shown = repr(ServerSettings(tmp_path, api_keys=(OLD,), admin_token=TOKEN))
    assert OLD not in shown
    assert TOKEN not in shown


def test_serve_has_no_option_for_a_secret() -> None:
    """Options are visible to every user of the machine in the list of processes."""
    import typer

    from vigil.cli import serve

    app = typer.Typer()
    app.command()(serve.serve)
    options = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    assert {"--api-key-file", "--no-auth", "--allow-host", "--allow-origin", "--tls-cert", "--tls-key"} <= options
    assert [option for option in options if re.search(r"(token|secret|password|api-key)$", option)] == []


def test_version_of_a_file_changes_when_it_is_replaced_by_one_of_equal_size(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second):
        file.write_text(OLD)
        os.utime(file, (1, 1))
    before = access._version(first)
    second.replace(first)
    assert access._version(first) != before
