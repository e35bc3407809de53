"""Who runs this process, and by which command, as histories and the ledger of lineage record it: without secrets."""

import getpass
import os
import re
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

_HIDDEN = "***"
_SECRETS = r"token|secret|password|passwd|credential|signature|api[-_]?key|access[-_]?key"
_SECRET_OPTION = re.compile(rf"--[\w.-]*(?:{_SECRETS})[\w.-]*", re.IGNORECASE)
_SECRET_SETTING = re.compile(rf"([\w.-]*(?:{_SECRETS})[\w.-]*=).*", re.IGNORECASE | re.DOTALL)
_URL_USER = re.compile(r"(\w+://)[^/@\s]*@")
_URL_QUERY = re.compile(r"(\w+://[^?\s]*\?)\S*")
_NAMING_OPTION = re.compile(r"--(?:id|author|where)")
_NAMING_SETTING = re.compile(r"((?:--(?:id|author)|[\w.-]*where)=).*", re.DOTALL)


def command_line(arguments: Sequence[str] | None = None, *, names: bool = True) -> str:
    """Return the command of this process as one would type it, without passwords, tokens and the queries of URLs.

    Args:
        arguments: the program and its arguments (default: those of this process).
        names: keep the values that name items or people: of ``--id``, ``--author``, ``--where`` and recipe keys ``where``.
    """
    program, *rest = sys.argv if arguments is None else arguments
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([name, *(_public(word, before, names) for before, word in zip(["", *rest], rest, strict=False))])


def _public(word: str, before: str, names: bool) -> str:
    """Return an argument without its secrets; ``before`` is the previous one."""
    if not names:
        if _NAMING_OPTION.fullmatch(before):
            return _HIDDEN
        word = _NAMING_SETTING.sub(rf"\g<1>{_HIDDEN}", word)
    if _SECRET_OPTION.fullmatch(before) and not word.startswith("--"):
        return _HIDDEN
    word = _SECRET_SETTING.sub(rf"\g<1>{_HIDDEN}", word)
    return _URL_QUERY.sub(rf"\g<1>{_HIDDEN}", _URL_USER.sub(rf"\g<1>{_HIDDEN}@", word))


def current_user() -> str:
    """Return who runs this process: ``user@host``, or the environment variable ``VIGIL_USER``."""
    if given := os.environ.get("VIGIL_USER", "").strip():
        return given
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run as a user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
