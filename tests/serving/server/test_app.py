"""Routes, in this process with a fake scorer: states, limits, errors, headers and metrics."""

import asyncio
import base64
import hashlib
import json
import re
import threading
from contextlib import asynccontextmanager

import httpx
import pytest

from vigil_data.errors import UserError
from vigil_serving.server.app import CONTENT_SECURITY_POLICY, PAGE, create_app
from vigil_serving.server.model_manager import LoadedBundle
from vigil_serving.server.service import Service
from vigil_serving.server.settings import RequestLimits, ServerSettings

from .conftest import TOKEN, FakeScorer, number, until

BODY = {"items": [{"id": "a", "text": ["call now"]}]}
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def client_of(service: Service, ready: bool = True):
    app = create_app(service)
    async with app.router.lifespan_context(app):
        if ready:
            await until(lambda: service.models.ready)
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


def run(service: Service, work, ready: bool = True):
    async def main():
        async with client_of(service, ready) as client:
            return await work(client)

    return asyncio.run(main())


def counters(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(vigil_\S+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def test_score_names_the_bundle_that_decided(make_service) -> None:
    answer = run(make_service(), lambda client: client.post("/v1/score", json=BODY))
    assert answer.status_code == 200
    body = answer.json()
    assert (body["bundle"], body["digest"], body["policy"]) == ("fake", "d" * 64, None)
    assert body["decisions"][0]["probabilities"] == {"scam": number("a")}


def test_health_while_loading_ready_and_draining(make_service) -> None:
    service = make_service()
    load = service.models._loading
    gate = threading.Event()

    def slow(path):
        gate.wait(10)
        return load(path)

    service.models._loading = slow

    async def work(client: httpx.AsyncClient):
        async def states():
            paths = (
                "/health/live",
                "/health/ready",
                "/v2/health/live",
                "/v2/health/ready",
                "/v1/bundle",
                "/v2/models/fake/ready",
            )
            score = await client.post("/v1/score", json=BODY)
            return [(await client.get(path)).status_code for path in paths] + [score.status_code], score

        loading, refused = await states()
        assert refused.headers["Retry-After"] == "5"
        gate.set()
        await until(lambda: service.models.ready)
        ready, _ = await states()
        await service.admission.drain(1)
        draining, refused = await states()
        assert refused.headers["Connection"] == "close"
        assert (await client.get("/health/ready")).json() == {"status": "draining"}
        return loading, ready, draining

    loading, ready, draining = run(service, work, ready=False)
    assert loading == [200, 503, 200, 503, 503, 503, 503]
    assert ready == [200] * 7
    assert draining == [200, 503, 200, 503, 200, 503, 503]


def test_service_fails_if_the_first_bundle_cannot_be_loaded(make_service) -> None:
    service = make_service()
    given_up = []
    service.on_failure = lambda: given_up.append(True)

    def broken(_):
        raise UserError("nothing there")

    service.models._loading = broken

    async def work(_):
        await until(lambda: given_up != [])

    run(service, work, ready=False)
    assert str(service.failed) == "nothing there"


def test_read_body_counts_bytes_as_they_arrive(make_service) -> None:
    service = make_service(limits=RequestLimits(bytes=1000))
    sent = []

    async def chunks(count: int):
        for _ in range(count):
            sent.append(100)
            yield b"x" * 100

    async def work(client: httpx.AsyncClient):
        headers = {"Content-Type": "application/json"}
        announced = await client.post("/v1/score", content=b"x" * 1001, headers=headers)
        chunked = await client.post("/v1/score", content=chunks(50), headers=headers)
        absurd = await client.post("/v1/score", content=b"", headers={**headers, "Content-Length": "9" * 30})
        fits = await client.post("/v1/score", json=BODY)
        return [answer.status_code for answer in (announced, chunked, absurd, fits)]

    assert run(service, work) == [413, 413, 413, 200]
    assert service.body_memory.bytes == 0


def test_body_memory_budget_bounds_all_bodies_together(make_service) -> None:
    service = make_service(limits=RequestLimits(bytes=1000))
    release = asyncio.Event()

    async def slow():
        yield b"x" * 900
        await release.wait()

    async def work(client: httpx.AsyncClient):
        headers = {"Content-Type": "application/json"}
        held = [asyncio.create_task(client.post("/v1/score", content=slow(), headers=headers)) for _ in range(8)]
        await until(lambda: service.body_memory.bytes == 7200)
        refused = await client.post("/v1/score", content=b"x" * 900, headers=headers)
        release.set()
        rest = await asyncio.gather(*held)
        after = await client.post("/v1/score", json=BODY)
        return refused, [answer.status_code for answer in rest], after.status_code

    refused, rest, after = run(service, work)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert rest == [400] * 8
    assert after == 200
    assert service.body_memory.bytes == 0


def test_read_body_refuses_slow_and_compressed_bodies(make_service) -> None:
    service = make_service(upload_seconds=0.05)

    async def slow_chunks():
        yield b"{"
        await asyncio.sleep(5)

    async def work(client: httpx.AsyncClient):
        slow = await client.post("/v1/score", content=slow_chunks(), headers={"Content-Type": "application/json"})
        packed = await client.post("/v1/score", content=b"x", headers={"Content-Encoding": "gzip"})
        return slow.status_code, packed.status_code

    assert run(service, work) == (408, 415)


def test_error_responses_are_one_line_without_content(make_service) -> None:
    secret = "must-not-be-repeated"

    async def work(client: httpx.AsyncClient):
        form = {"Content-Type": f"multipart/form-data; boundary={secret}"}
        return [
            await client.get(f"/{secret}"),
            await client.put("/v1/score"),
            await client.post("/v1/score", content=secret, headers={"Content-Type": "application/json"}),
            await client.post("/v1/score", json={"items": [{"id": "a", secret: secret}]}),
            await client.post("/v1/score", json={"items": [{"id": "a", "columns": {secret: []}}]}),
            await client.post("/v1/score", json={"items": [{"id": "a", "image": [secret]}]}),
            await client.post("/v1/score", content=secret, headers=form),
            await client.post("/v1/score", content=secret, headers={"Content-Type": secret}),
            await client.get(f"/v2/models/{secret}"),
            await client.post(f"/v2/models/{secret}/infer", json={secret: secret}),
            await client.post("/v2/models/fake/infer", json={"inputs": [{"name": secret}]}),
            await client.post("/v1/score", json={"items": [{"id": f"poison {secret}"}]}),
        ]

    answers = run(make_service(), work)
    assert [answer.status_code for answer in answers] == [404, 405, 400, 422, 422, 422, 400, 415, 404, 404, 422, 500]
    for answer in answers:
        assert set(answer.json()) == {"error"}
        assert secret not in answer.text
        assert "\n" not in answer.json()["error"]
    assert answers[1].headers["Allow"] == "POST"


def test_middleware_adds_security_headers_to_every_response(make_service) -> None:
    async def work(client: httpx.AsyncClient):
        return await client.get("/"), await client.get("/nowhere")

    page, nowhere = run(make_service(), work)
    for answer in (page, nowhere):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
    assert page.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


def test_demo_page_is_one_file_and_its_content_security_policy_allows_only_that() -> None:
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", PAGE) == []
    assert re.findall(r"https?://|//cdn|@import|innerHTML|insertAdjacentHTML|document\.write|style=\"| on\w+=\"", PAGE) == []
    script = re.search(r"<script>(.*)</script>", PAGE, re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'")


def test_reload_requires_the_token_and_refuses_bad_bundles(make_service, tmp_path) -> None:
    service = make_service(admin_token=TOKEN)
    second = FakeScorer(digest="e" * 64, name="second")

    def loading(path):
        if path.name == "good":
            return LoadedBundle(path, second)
        raise UserError(f"{path}: altered", "second line")

    async def work(client: httpx.AsyncClient):
        service.models._loading = loading
        good, bad = {"bundle": str(tmp_path / "good")}, {"bundle": str(tmp_path / "bad")}
        answers = [
            await client.post("/v1/reload", json=good),
            await client.post("/v1/reload", json=good, headers={"Authorization": "Bearer wrong"}),
            await client.post("/v1/reload", json=good, headers={"Authorization": f"Basic {TOKEN}"}),
            await client.post("/v1/reload", json=good, headers={"Authorization": b"Bearer \xff\xfe"}),
            await client.post("/v1/reload", json=bad, headers=ADMIN),
            await client.post("/v1/reload", json={"bundle": 1}, headers=ADMIN),
            await client.post("/v1/reload", json={"bundle": "a\0b"}, headers=ADMIN),
            await client.post("/v1/reload", content=b"{}", headers=ADMIN),
        ]
        still = (await client.post("/v1/score", json=BODY)).json()["digest"]
        state = (await client.get("/v1/bundle")).json()["reload"]
        service.models.busy = True
        answers.append(await client.post("/v1/reload", json=good, headers=ADMIN))
        service.models.busy = False
        done = await client.post("/v1/reload", json=good, headers=ADMIN)
        after = (await client.post("/v1/score", json=BODY)).json()
        metrics = (await client.get("/metrics")).text
        return [a.status_code for a in answers], answers, still, state, done.json(), after, metrics

    statuses, answers, still, state, done, after, metrics = run(service, work)
    assert statuses == [401, 401, 401, 401, 422, 422, 422, 415, 409]
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"
    assert answers[4].json()["error"].endswith("bad: altered; second line")
    assert (still, state) == ("d" * 64, "refused")
    assert done == {"bundle": "second", "digest": "e" * 64, "before": "d" * 64}
    assert (after["bundle"], after["digest"]) == ("second", "e" * 64)
    seen = counters(metrics)
    assert seen['vigil_reloads_total{result="loaded"}'] == 2
    assert seen['vigil_reloads_total{result="refused"}'] == 1
    assert [name for name in seen if name.startswith("vigil_bundle_info")] == [
        f'vigil_bundle_info{{digest="{"e" * 64}",name="second",policy=""}}'
    ]


def test_reload_is_off_without_a_token(make_service) -> None:
    answer = run(make_service(), lambda client: client.post("/v1/reload", json={"bundle": "/x"}, headers=ADMIN))
    assert answer.status_code == 403


def test_metrics_count_requests_items_and_failures(make_service) -> None:
    service = make_service()

    async def work(client: httpx.AsyncClient):
        for _ in range(3):
            await client.post("/v1/score", json=BODY)
        await client.post("/v1/score", json={"items": [{"id": "poison"}]})
        await client.post("/v1/score", content=b"{", headers={"Content-Type": "application/json"})
        await client.get("/nowhere")
        return await client.get("/metrics")

    answer = run(service, work)
    assert answer.headers["Content-Type"].startswith("text/plain")
    seen = counters(answer.text)
    assert seen['vigil_requests_total{route="/v1/score",status="200"}'] == 3
    assert seen['vigil_requests_total{route="/v1/score",status="500"}'] == 1
    assert seen['vigil_requests_total{route="/v1/score",status="400"}'] == 1
    assert seen['vigil_requests_total{route="unmatched",status="404"}'] == 1
    assert seen['vigil_refused_total{reason="malformed"}'] == 1
    assert seen['vigil_items_total{presence="text"}'] == 3
    assert seen["vigil_failures_total"] == 2  # in the batch and alone
    assert seen["vigil_batch_items_count"] == 4
    assert seen["vigil_queue_items"] == 0
    assert seen["vigil_requests_in_flight"] == 0
    assert seen['vigil_cache_lookups{result="hit"}'] == 3
    assert seen['vigil_request_seconds_count{route="/v1/score"}'] == 5
    assert "process_resident_memory_bytes" in answer.text


def test_metrics_of_two_servers_in_one_process_are_separate(make_service) -> None:
    async def work(client: httpx.AsyncClient):
        await client.post("/v1/score", json=BODY)
        return counters((await client.get("/metrics")).text)['vigil_requests_total{route="/v1/score",status="200"}']

    assert [run(make_service(), work) for _ in range(2)] == [1, 1]


def test_score_removes_a_disconnected_client_from_the_queue(make_service) -> None:
    scorer = FakeScorer()
    scorer.go.clear()
    service = make_service(scorer, workers=1)
    body = json.dumps(BODY).encode()

    async def send_and_disconnect(app):
        """Send a request whose client disconnects after its body was read."""
        messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "http_version": "1.1", "scheme": "http", "server": ("s", 1),
            "client": ("c", 1), "root_path": "",
        }  # fmt: skip

        async def receive():
            return messages.pop(0)

        async def send(_):
            return None

        await app(scope, receive, send)

    async def main():
        app = create_app(service)
        async with app.router.lifespan_context(app):
            await until(lambda: service.models.ready)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                busy = asyncio.create_task(client.post("/v1/score", json={"items": [{"id": "busy"}]}))
                await until(lambda: any("busy" in call for call in scorer.calls))
                await send_and_disconnect(app)
                scorer.go.set()
                answer = await busy
            return answer.status_code

    assert asyncio.run(main()) == 200
    assert not any("a" in call for call in scorer.calls)
    assert service.admission.in_flight == 0
    assert service.batcher.waiting == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queue": 5}, "--queue 5"),
        ({"shadow_log": "x"}, "--shadow-log"),
        ({"admin_token": "short"}, "VIGIL_ADMIN_TOKEN: must have at least 16"),
    ],
)
def test_server_settings_refuse_inconsistent_values(tmp_path, settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerSettings(tmp_path, **settings)
