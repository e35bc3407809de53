"""A process that runs several commands, so that libraries are imported once."""

import json
import os
import shlex
import sys
from pathlib import Path

import typer


def run_commands() -> None:
    """Run the commands of standard input, JSON arrays of arguments, in this process, and print a line as each ends.

    The libraries are imported once. All output of the commands goes to the log file that ``sys.argv`` names.
    """
    from vigil.cli import build, exit_on_error
    from vigil.cli.loop import run_command

    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as ended:
        with Path(sys.argv[1]).open("ab") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
        vigil = typer.main.get_command(build())
        for line in sys.stdin:
            command = json.loads(line)
            typer.echo(f"\n$ vigil {shlex.join(command)}")
            with exit_on_error():
                run_command(vigil, command)
            print(shlex.join(command), file=ended, flush=True)
