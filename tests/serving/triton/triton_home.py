"""Real Triton server without Docker: ``python tests/serving/triton/triton_home.py FOLDER`` installs it in about 15 seconds.

Then ``VIGIL_TRITON_HOME=FOLDER pytest tests/serving/triton/test_server.py`` serves a repository with it.

NVIDIA's wheel ``nvidia-pytriton`` contains a Triton server (2.51) with only the Python backend. A stand-in for the ONNX Runtime
backend, as one of Triton's Python-based backends, runs the graphs, so that a repository is served unchanged. The Python backend
of 2.51 crashes with NumPy 2, so it gets a separate environment with NumPy 1.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
PACKAGES = ("numpy<2", "onnxruntime", "tokenizers", "pillow", "soundfile", "soxr")
SERVER = Path("pytriton") / "tritonserver"


def main(home: Path) -> None:
    """Install the server into a folder."""
    home.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(home), WHEEL], check=True)
    [wheel] = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    wheel.unlink()
    server = home / SERVER
    stub = "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / version / stub, server / "backends" / "python" / stub)
    for binary in (server / "bin" / "tritonserver", server / "backends" / "python" / stub):
        binary.chmod(0o755)
    backend = server / "backends" / "onnxruntime"
    backend.mkdir()
    shutil.copy(Path(__file__).with_name("triton_onnxruntime.py"), backend / "model.py")
    # The stub's interpreter is isolated: it finds only its own library and the files in the server's working folder.
    subprocess.run([*pip, "install", "--target", str(home / "work"), *PACKAGES], check=True)
    repository = Path(__file__).resolve().parents[3]
    for package in ("data/vigil_data", "evaluation/vigil_evaluation", "serving/vigil_serving"):
        (home / "work" / Path(package).name).symlink_to(repository / package)


def start(home: Path, models: Path, http: int, grpc: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the server; it is ready when its health endpoint answers."""
    server = home / SERVER
    options = {
        "model-repository": models,
        "backend-directory": server / "backends",
        "http-address": "127.0.0.1",
        "grpc-address": "127.0.0.1",
        "http-port": http,
        "grpc-port": grpc,
        "allow-metrics": "false",
        "exit-timeout-secs": 5,
    }
    libraries = os.pathsep.join(filter(None, [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]))
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())],
            cwd=home / "work",
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
