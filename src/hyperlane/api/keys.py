"""Which API keys there are, and whose account each is: those of the configuration, and those of a file that may change.

Knows no HTTP. Keeps digests of keys, no keys.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from hyperlane import values
from hyperlane.api.limits import Account, KeyLimits
from hyperlane.config import ApiConfig
from hyperlane.errors import ConfigError
from hyperlane.said import refuse_unknown, said_by_toml

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_MOST = 1 << 40
_LIMITS = ("concurrent", "requests_per_minute", "tokens_per_minute")
_ENTRIES = ("key", "sha256", *_LIMITS)


class KeyRing:
    """The keys that open the API, each with its owner's account. Belongs to one event loop."""

    def __init__(self, config: ApiConfig) -> None:
        """Read the file, if there is one.

        Raises:
            ConfigError: it cannot be read, or an entry is wrong.

        """
        self._usual = KeyLimits(config.key_concurrent, config.key_requests_per_minute, config.key_tokens_per_minute)
        self._configured = {f"key-{number}": digest_of(key) for number, key in enumerate(config.key or (), 1)}
        self._file = config.keys_file
        self._seen: object = None
        self._by_digest: dict[bytes, Account] = {}
        self.accounts: dict[str, Account] = {}
        """By name; those of keys that were taken out of the file stay."""
        self._read()

    def find(self, token: str) -> Account | None:
        """Whose key this is. How long that takes tells nothing of how close a guess is."""
        if self._file is not None and _stamp(self._file) != self._seen:
            self._read_again()
        digest = digest_of(token)
        found = [account for known, account in self._by_digest.items() if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    def _read_again(self) -> None:
        """The file changed: a wrong one changes nothing."""
        try:
            self._read()
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)

    def _read(self) -> None:
        self._seen = _stamp(self._file) if self._file is not None else None
        owners = {name: (digest, self._usual) for name, digest in self._configured.items()}
        if self._file is not None:
            for name, entries in said_by_toml(self._file, "file of keys").items():
                if name in owners:
                    raise ConfigError(f"{self._file}: [{name}]: keys without a file have this name; choose another")
                owners[name] = _owner(entries, self._usual, f"{self._file}: [{name}]")
        by_digest: dict[bytes, Account] = {}
        for name, (digest, limits) in owners.items():
            if digest in by_digest:
                raise ConfigError(f"the keys of '{by_digest[digest].name}' and '{name}' are the same")
            by_digest[digest] = self._account(name, limits)
        self._by_digest = by_digest

    def _account(self, name: str, limits: KeyLimits) -> Account:
        account = self.accounts.setdefault(name, Account(name, limits))
        account.change(limits)
        return account


def digest_of(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _stamp(file: Path) -> object:
    """What changes when the file does."""
    try:
        known = file.stat()
    except OSError:
        return None
    return known.st_mtime_ns, known.st_size, known.st_ino


def _owner(entries: object, usual: KeyLimits, place: str) -> tuple[bytes, KeyLimits]:
    """The digest and limits of one section of the file."""
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{place} must be a section: [NAME]")
    for name in entries:
        refuse_unknown(name, _ENTRIES, f"{place}: entry")
    given = {name: _number(entries[name], f"{place} {name}") for name in _LIMITS if name in entries}
    limits = KeyLimits(**{name: given.get(name, getattr(usual, name)) for name in _LIMITS})
    if ("key" in entries) == ("sha256" in entries):
        raise ConfigError(f"{place}: give either 'key' or 'sha256', the key's SHA-256 in hexadecimal")
    word = entries.get("key") or entries.get("sha256")
    if not isinstance(word, str) or ("sha256" in entries and not _DIGEST.fullmatch(word)):
        raise ConfigError(f"{place}: 'key' must be a text that is not empty, 'sha256' 64 hexadecimal digits")
    return digest_of(word) if "key" in entries else bytes.fromhex(word), limits


def _number(value: object, place: str) -> int | None:
    try:
        return values.whole(0, _MOST)(value) or None
    except ValueError as error:
        raise ConfigError(f"{place}: {value!r}: {error}") from None
