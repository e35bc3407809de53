"""Fakes of Slurm's commands, which record their calls, and the options that sbatch reads from a batch script."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

FAKE = Path(__file__).with_name("fake_slurm_command.sh")


class FakeSlurm:
    """Folder of fake commands for PATH.

    Args:
        folder: new folder.
        commands: names of the commands.
    """

    def __init__(self, folder: Path, *commands: str) -> None:
        self.folder = folder
        folder.mkdir()
        for command in commands:
            (folder / command).symlink_to(FAKE)

    def script(self, command: str, text: str) -> None:
        """Have a command run a shell script."""
        (self.folder / f"{command}.do").write_text(text + "\n", encoding="utf-8")

    def environment(self, **variables: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name != "VIGIL_SITE"}
        return {**own, "PATH": f"{self.folder}:{os.environ['PATH']}", "FAKES": str(self.folder), **variables}

    def run(self, command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def vigil(self, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a `vigil` command; the registry of jobs is in the parent of ``cwd``."""
        command = [sys.executable, "-c", "from vigil.cli import main; main()", *arguments]
        return self.run(command, cwd, XDG_STATE_HOME=str(cwd.parent), **variables)

    @property
    def calls(self) -> list[list[str]]:
        """All calls: name and arguments, quoted for bash."""
        file = self.folder / "calls"
        return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []

    def calls_of(self, command: str) -> list[list[str]]:
        """Arguments of each call of a command, quoted for bash."""
        return [arguments for name, *arguments in self.calls if name == command]

    def arguments(self, command: str) -> list[str]:
        """Arguments of the last call."""
        return (self.folder / f"{command}.arguments").read_text(encoding="utf-8").split("\0")[:-1]

    def variables(self, command: str) -> dict[str, str]:
        """Environment of the last call."""
        lines = (self.folder / f"{command}.environment").read_text(encoding="utf-8").split("\0")[:-1]
        return dict(line.split("=", 1) for line in lines)


def directives(script: str) -> dict[str, str]:
    """Return the options that sbatch reads from a script: name to value, empty for flags."""
    options: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH "), comments=True):
                name, _, value = word.removeprefix("--").partition("=")
                options[name] = value
    return options
