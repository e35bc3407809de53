"""Connections to a real server: slow and silent clients, too many of them, oversized heads, TLS, and rotation of keys."""

import contextlib
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from vigil_data.errors import UserError
from vigil_serving.server import main
from vigil_serving.server.settings import ServerSettings

from .conftest import ServerProcess, launch
from .test_main import vigil

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
BUNDLE = b"GET /v1/bundle HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = {"items": [{"id": "a", "text": ["call now"]}]}
OLD, NEW = "old-key-0123456789", "new-key-0123456789"


@pytest.fixture(scope="module")
def hasty(exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that waits two seconds for a head and for a body, and has 20 connections."""
    options = ("--upload-seconds", "2", "--max-connections", "20")
    running = launch(exported.bundle, tmp_path_factory.mktemp("hasty") / "log", *options)
    yield running
    running.process.kill()
    running.process.wait()


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def status(connection: socket.socket) -> bytes:
    """Read a response with the header Content-Length and return its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    while len(body) < int(re.search(rb"(?i)content-length: (\d+)", head)[1]):
        body += connection.recv(65536)
    return head[9:12]


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def closed_while_sending(connection: socket.socket, pieces: list[bytes]) -> bool:
    """Send a piece every 50 ms; return whether the server closes the connection before the last one."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"POST /v1/sc", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_connection_times_out_if_a_head_does_not_arrive(hasty: ServerProcess, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_connection_times_out_if_a_head_trickles_in(hasty: ServerProcess) -> None:
    with connect(hasty) as connection:
        head = b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 300
        assert closed_while_sending(connection, [bytes([byte]) for byte in head])


def test_connection_times_out_if_a_second_head_does_not_arrive(hasty: ServerProcess) -> None:
    with connect(hasty) as connection:
        connection.sendall(LIVE)
        assert status(connection) == b"200"
        time.sleep(2.5)
        connection.sendall(LIVE)
        assert status(connection) == b"200", "between requests an idle connection stays open"
        connection.sendall(b"GET /")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


def test_connection_does_not_read_a_refused_body_for_ever(hasty: ServerProcess) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n"
    with connect(hasty) as connection:
        connection.sendall(head)
        assert status(connection) == b"413"
        assert closed_while_sending(connection, [b"x" * 1000] * 300)


def test_connection_closes_without_a_trace_after_a_malformed_rest(hasty: ServerProcess) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert status(connection) == b"404"
        connection.sendall(b"no chunk\r\n")
        assert read_all(connection) == b""
    assert "event loop" not in hasty.log.read_text()


@pytest.mark.parametrize(("size", "expected"), [(10_000, b"200"), (1_000_000, b"400")])
def test_connection_refuses_oversized_heads(hasty: ServerProcess, size: int, expected: bytes) -> None:
    with connect(hasty) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")
            for _ in range(0, size, 1000):
                connection.sendall(b"X: " + b"x" * 995 + b"\r\n")
            connection.sendall(b"\r\n")
        assert connection.recv(65536)[9:12] == expected
    assert hasty.get("/health/live").status_code == 200


def test_connection_needs_a_host(hasty: ServerProcess) -> None:
    """HTTP/1.1 without or with two Hosts is malformed; HTTP/1.0 has none."""
    heads = {
        b"GET /v1/bundle HTTP/1.1\r\n\r\n": b"400",
        b"GET /v1/bundle HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n": b"400",
        b"GET /v1/bundle HTTP/1.0\r\n\r\n": b"400",
        b"GET /v1/bundle HTTP/1.0\r\nHost: localhost\r\n\r\n": b"200",
        b"GET /health/ready HTTP/1.0\r\n\r\n": b"200",
        b"GET /v1/bundle HTTP/1.1\r\nHost: evil.example\r\n\r\n": b"421",
        b"GET http://localhost/v1/bundle HTTP/1.1\r\nHost: evil.example\r\n\r\n": b"421",
    }
    for head, expected in heads.items():
        with connect(hasty) as connection:
            connection.sendall(head)
            assert connection.recv(65536)[9:12] == expected, head


def test_slow_clients_do_not_keep_others_from_being_answered(hasty: ServerProcess) -> None:
    slow = [connect(hasty) for _ in range(15)]
    for number, connection in enumerate(slow):
        connection.sendall(
            (b"GET / HTT", b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")[number % 2]
        )
    assert hasty.post("/v1/score", json=BODY).status_code == 200
    assert select.select(slow, [], [], 0)[0] == [], "answered while the slow ones were still waited for"
    assert {read_all(connection)[9:12] for connection in slow} == {b"408"}
    for connection in slow:
        connection.close()


def test_requests_beyond_max_connections_get_503_and_health_stays_open(hasty: ServerProcess) -> None:
    opened = [connect(hasty) for _ in range(25)]
    try:
        for connection in opened:
            connection.sendall(BUNDLE)
        statuses = Counter(status(connection) for connection in opened)
        assert statuses == {b"200": 20, b"503": 5}
        with connect(hasty) as probe:
            probe.sendall(LIVE)
            assert status(probe) == b"200"
    finally:
        for connection in opened:
            connection.close()
    end = time.monotonic() + 5
    while hasty.get("/v1/bundle").status_code != 200:
        assert time.monotonic() < end
    assert 'vigil_refused_total{reason="connections"} 5.0' in hasty.get("/metrics").text


UNREAD = "import vigil_serving.server.main as m; m.UNREAD_SECONDS = 2; from vigil.cli import main; main()"


def test_connection_ends_if_the_client_reads_nothing(start: Callable[..., ServerProcess], exported) -> None:
    running = start(exported.bundle, program=UNREAD)
    with socket.socket() as connection:
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", running.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        time.sleep(5)
        assert read_all(connection).count(b"HTTP/1.1 200 ") < 200, "the rest was given up"


LIMITED = """
import logging, resource
from vigil_serving.server import main
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 400))
for count in (50, 200, 500):
    main._allow_open_files(count)
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_serve_raises_the_limit_of_open_files_as_far_as_it_may() -> None:
    ran = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["(100, 400)", "(200, 400)", "(400, 400)"]
    assert ran.stderr == "--max-connections: this process may have 400 open files, and needs 500; raise `ulimit -Hn`\n"


def test_serve_refuses_other_addresses_without_a_key(exported) -> None:
    refused = vigil(str(exported.bundle), "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --host 0.0.0.0: others can reach this address, and no API key is set")


def test_serve_warns_about_no_auth(start: Callable[..., ServerProcess], exported) -> None:
    running = start(exported.bundle, "--host", "0.0.0.0", "--no-auth")
    assert running.post("/v1/score", json=BODY).status_code == 200
    assert "WARNING --no-auth: everyone who can reach this address can use the server" in running.log.read_text()


def test_serve_rotates_keys_without_a_restart(start: Callable[..., ServerProcess], exported, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OLD}\n")
    running = start(exported.bundle, "--host", "0.0.0.0", "--api-key-file", str(file))

    def statuses() -> list[int]:
        return [
            running.post("/v1/score", json=BODY, headers={"Authorization": f"Bearer {key}"}).status_code for key in (OLD, NEW)
        ]

    def settled(expected: list[int]) -> None:
        end = time.monotonic() + 5
        while statuses() != expected:
            assert time.monotonic() < end, statuses()
            time.sleep(0.05)

    assert statuses() == [200, 401]
    file.write_text(f"{OLD}\n{NEW}\n")
    settled([200, 200])
    file.write_text(f"{NEW}\n")
    running.process.send_signal(signal.SIGHUP)
    settled([401, 200])
    command = Path(f"/proc/{running.process.pid}/cmdline").read_text()
    log = running.log.read_text()
    assert "every user of this machine can access the API keys" in log
    for key in (OLD, NEW):
        assert key not in command
        assert key not in log


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate of localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    folder.mkdir()
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return folder / "cert.pem", folder / "key.pem"


def test_serve_uses_tls_and_reloads_its_certificate(start: Callable[..., ServerProcess], exported, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "first", "first")
    trust = ssl.create_default_context(cafile=str(cert))
    running = start(exported.bundle, "--tls-cert", str(cert), "--tls-key", str(key), verify=trust)
    assert running.base.startswith("https://127.0.0.1:")
    assert running.post("/v1/score", json=BODY).status_code == 200
    page = running.get("/v1/bundle", headers={"Origin": running.base})
    assert page.status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{running.port}/health/live")
    with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
        httpx.get(running.base + "/health/live")

    second_cert, second_key = certificate(tmp_path / "second", "second")
    second_cert.replace(cert)
    running.process.send_signal(signal.SIGHUP)
    wait_for(running, "certificate not replaced: --tls-cert")
    assert running.get("/health/live").status_code == 200, "the previous certificate stays"
    second_key.replace(key)
    running.process.send_signal(signal.SIGHUP)
    running.verify = ssl.create_default_context(cafile=str(cert))
    end = time.monotonic() + 5
    while True:
        try:
            assert running.get("/health/live").status_code == 200
            break
        except httpx.ConnectError:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert running.stop() == 0


def wait_for(running: ServerProcess, line: str) -> None:
    end = time.monotonic() + 5
    while line not in running.log.read_text():
        assert time.monotonic() < end, running.log.read_text()
        time.sleep(0.05)


def test_serve_refuses_certificates_that_it_cannot_use(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path / "first", "first")
    _, other = certificate(tmp_path / "second", "second")
    encrypted = tmp_path / "encrypted.pem"
    openssl = ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(encrypted)]
    subprocess.run(openssl, check=True, capture_output=True)
    for pair in ((cert, other), (cert, encrypted), (key, key), (tmp_path / "nothing", key)):
        with pytest.raises(UserError, match=re.escape(f"--tls-cert {pair[0]}, --tls-key {pair[1]}: not a certificate")):
            main._tls_context(ServerSettings(tmp_path, tls_cert=pair[0], tls_key=pair[1]))
