"""API keys: who may use the server, and how much.  Kept as hashes in ~/.kvasir/keys.json.

A key is 32 random bytes, so its SHA-256 gives nothing away and a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kvasir.errors import UsageError

log = logging.getLogger("kvasir")

PREFIX = "kv-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
MOST_PER_MINUTE = 10**9
MAX_KEYS = 10_000


class Key(msgspec.Struct, frozen=True):
    """What is known of a key.  `hash`: SHA-256 of it, in hex.  `tenant`: random; keeps its prompts apart.

    The limits: None is none.  `admin`: it may change the models that there are.
    """

    name: str
    hash: str
    tenant: str
    created: datetime
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    admin: bool = False


class KeyFile(msgspec.Struct):
    """The file."""

    keys: list[Key]
    version: int = 1


def keys_path() -> Path:
    """Where the user's keys are kept."""
    return Path.home() / ".kvasir" / "keys.json"


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys in a file; none if it is not there.  Raises UsageError for one that cannot be read."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        found = msgspec.json.decode(raw, type=KeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "move it away and make the keys anew"
        raise UsageError(f"{path} is no list of keys: {error}", hint=hint) from None
    if found.version != KeyFile([]).version:
        raise UsageError(f"{path} was written by another version of Kvasir (its format: {found.version})")
    return tuple(found.keys)


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replaces the file as a whole; its owner alone may read it.  Raises UsageError."""
    body = msgspec.json.format(msgspec.json.encode(KeyFile(list(keys))), indent=2) + b"\n"
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def add_key(
    path: Path,
    name: str,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    admin: bool = False,
) -> str:
    """Makes a key, and gives it: nothing can show it again.  Raises UsageError for a name that is taken."""
    if not NAME.fullmatch(name):
        raise UsageError(f"a key's name has 1 to 64 letters, digits and . _ @ -, not {name[:70]!r}")
    limits = {"--requests-per-minute": requests_per_minute, "--tokens-per-minute": tokens_per_minute}
    for option, limit in limits.items():
        if limit is not None and not 1 <= limit <= MOST_PER_MINUTE:
            raise UsageError(f"{option} must be between 1 and {MOST_PER_MINUTE}, got {limit}")
    keys = read_keys(path)
    if any(key.name == name for key in keys):
        hint = f"choose another, or `kvasir keys rm {name}` first"
        raise UsageError(f"there is a key named {name} already", hint=hint)
    if len(keys) >= MAX_KEYS:
        raise UsageError(f"there are {len(keys)} keys, and that is the most")
    text = PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC).replace(microsecond=0)
    limits_of = (requests_per_minute, tokens_per_minute)
    key = Key(name, hash_of(text), secrets.token_hex(16), now, *limits_of, admin)
    write_keys(path, (*keys, key))
    return text


def remove_key(path: Path, name: str) -> None:
    """Raises UsageError when there is no key of that name."""
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise UsageError(f"there is no key named {name[:70]!r}", hint="`kvasir keys ls` shows them")
    write_keys(path, left)


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Keyring:
    """The keys in a file, read again whenever it changes.  Mutable; lives in the event loop.

    `always`: a key is needed even if there is none, since others can reach the server.
    """

    def __init__(self, path: Path, always: bool = False):
        self.path, self.always = path, always
        self._keys = read_keys(path)
        self._seen = self._stamp()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys there are now; the last ones known while the file cannot be read."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._keys = read_keys(self.path)
            except UsageError as error:
                log.error("the keys stay as they were: %s", error)
        return self._keys

    @property
    def needed(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.keys) or self.always

    def find(self, presented: Iterable[str]) -> Key | None:
        """The key that one of these texts is.  Takes as long whether they are nearly right or quite wrong."""
        found = None
        for text in presented:
            digest = hash_of(text)
            for key in self.keys:
                if hmac.compare_digest(key.hash, digest):
                    found = key
        return found

    def _stamp(self) -> tuple[int, int, int] | None:
        with suppress(OSError):
            stat = self.path.stat()
            return stat.st_mtime_ns, stat.st_ino, stat.st_size
        return None
