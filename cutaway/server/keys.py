"""Keys: who may ask. Kept as hashes, compared in constant time; a file has a line ``NAME SHA256`` for each."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cutaway.errors import SettingsError
from cutaway.server.limits import Limits
from cutaway.server.problem import Problem, later

_MAKE = "make keys with cutaway serve --new-key NAME --keys FILE"
SHORTEST = 16  # letters of a key that a person chose: what is hashed once can be guessed fast
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64})\s+([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Key:
    """A name and the sha256 of its secret."""

    name: str
    sha256: bytes = field(repr=False)


def hashed(secret: str) -> bytes:
    """The sha256 of a secret. Secrets are long and random (``new_key``), so no slow hash is needed."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def chosen(secret: str) -> Key:
    """A key that a person chose. Raises SettingsError for one that is short."""
    if len(secret) < SHORTEST:
        raise SettingsError(f"a key of {len(secret)} letters can be guessed", where="CUTAWAY_API_KEY",
                            way_out=f"take at least {SHORTEST}, or let `cutaway serve --new-key NAME` make one")
    return Key("default", hashed(secret))


def new_key(name: str, file: Path) -> str:
    """Make a key, note its hash in ``file`` (which others cannot read) and give it: it is nowhere else."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise SettingsError(f"{name!r} is no name of a key", way_out="use letters, digits, dots, dashes; 64 at most")
    if file.exists() and name in {key.name for key in read_keys(file)}:
        raise SettingsError(f"there is a key {name!r} already", where=file, way_out="take its line out, or choose "
                            "another name")
    secret = f"ck-{secrets.token_urlsafe(32)}"
    file.touch(mode=0o600)
    before = file.read_bytes()
    with file.open("a") as out:
        if before and not before.endswith(b"\n"):  # a person's last line
            out.write("\n")
        out.write(f"{name} {hashed(secret).hex()}\n")
    return secret


def read_keys(file: Path) -> list[Key]:
    """The keys of a file. Raises SettingsError for one that has none, and for a line that is not one."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot be read ({error})", where=file,
                            way_out=_MAKE) from None
    out = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise SettingsError("is no line NAME SHA256", where=f"{file}:{number}",
                                way_out=_MAKE)
        out.append(Key(found[1], bytes.fromhex(found[2])))
    if not out:
        raise SettingsError("holds no key", where=file, way_out=_MAKE)
    return out


def holder(authorization: str, keys: Sequence[Key]) -> Key | None:
    """Whose key an Authorization header has. Every key is compared, in constant time."""
    scheme, _, secret = authorization.partition(" ")
    given, found = hashed(secret.strip()), None
    for key in keys:
        if hmac.compare_digest(key.sha256, given) and scheme.lower() == "bearer":
            found = key
    return found


@dataclass(slots=True)
class Allowance:
    """What one key is doing: requests at once, and tokens that it may still spend (they come back by the minute)."""

    limits: Limits
    running: int = 0
    left: float = field(init=False)
    when: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.left = float(self.limits.tokens_per_minute or 0)

    def enter(self) -> None:
        """One request more. Raises Problem 429 where there are too many at once."""
        if self.running >= self.limits.per_key:
            raise later(f"this key has {self.running} requests running, and may have {self.limits.per_key}")
        self.running += 1

    def leave(self) -> None:
        """It is over."""
        self.running -= 1

    def spend(self, tokens: int) -> None:
        """Take tokens before they are read and written. Raises Problem 429 with the time until there are enough."""
        rate = self.limits.tokens_per_minute
        if rate is None:
            return
        now = time.monotonic()
        self.left, self.when = min(float(rate), self.left + (now - self.when) * rate / 60), now
        if tokens > rate:
            raise Problem(400, f"the request may take {tokens:,} tokens, and a key has {rate:,} a minute; ask for less "
                          "at once", code="rate_limit_exceeded")
        if tokens > self.left:
            raise later(f"the request may take {tokens:,} tokens, and this key has {int(self.left):,} left this minute",
                        seconds=(tokens - self.left) * 60 / rate + 1)
        self.left -= tokens

    def give_back(self, tokens: int) -> None:
        """Of what was taken, that which was not used."""
        if (rate := self.limits.tokens_per_minute) is not None:
            self.left = min(float(rate), self.left + tokens)
