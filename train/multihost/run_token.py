"""The token of a run: a secret that its hosts prove to each other that they have, before anything else."""

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOKEN_VARIABLE = "FLAXBERT_HOSTS_TOKEN"
_MIN_LENGTH = 16  # characters


def given_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment; None if there is none.

    Raises:
        ValueError: the file cannot be read, or the token is too short to be a secret.
    """
    source = TOKEN_VARIABLE if file is None else f"hosts.token_file {file}"
    try:
        token = os.environ.get(TOKEN_VARIABLE) if file is None else file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: cannot be read ({error}); give a file with the run's token") from None
    if token is not None and len(token.strip()) < _MIN_LENGTH:
        raise ValueError(
            f"{source}: the token has {len(token.strip())} characters; allowed: {_MIN_LENGTH} or more, such as the "
            "output of `openssl rand -hex 16`"
        )
    return token and token.strip()


@contextlib.contextmanager
def made_token(port: int) -> Iterator[str]:
    """Make a token in a file that only processes of this user on this machine can read; remove it at the end."""
    token, file = secrets.token_hex(16), _file(port)
    aside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        _check_private(file.parent)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as stream:
            stream.write(token)
        aside.replace(file)
        yield token
    finally:
        file.unlink(missing_ok=True)


def find_made_token(port: int) -> str | None:
    """Return the token that host 0 has made on this machine; None if there is none."""
    file = _file(port)
    try:
        _check_private(file.parent)
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def prove(token: str, *facts: object) -> str:
    """Return the digest of facts that only a process with the token can compute."""
    return hmac.new(token.encode(), repr(facts).encode(), "sha256").hexdigest()


def is_proof(proof: object, token: str, *facts: object) -> bool:
    """Return whether `proof` is the digest of the facts; the comparison takes the same time wherever they differ."""
    return isinstance(proof, str) and hmac.compare_digest(proof.encode(), prove(token, *facts).encode())


def _file(port: int) -> Path:
    return Path(tempfile.gettempdir()) / f"flaxbert-{os.getuid()}" / f"hosts-{port}"


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ValueError(f"{folder}: not a folder of this user alone; remove it, or give all hosts {TOKEN_VARIABLE}")
