"""Tokens that are refused before their end."""

from __future__ import annotations

import hashlib
import heapq
import hmac
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from crdt.ids import UserId

RevocationKind = Literal["user", "token", "erased"]

FOR_EVER_MS = 2**53 - 1


def hidden(salt: str, name: str) -> str:
    """What is kept of somebody or something that is to be recognised, and not to be known."""
    return f"{salt}:{hmac.digest(salt.encode(), name.encode(), hashlib.sha256).hex()}"


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What a token says of itself, as far as it can be revoked by it; times in ms since the epoch.

    `token_id` is its `jti`, `issued_at_ms` its `iat`; None where it has none.
    """

    user_id: UserId
    token_id: str | None = None
    issued_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Revocation:
    """One token, by its id, or all of a user's tokens that were issued up to `issued_until_ms`.
    An erased user's `id` is `hidden`.

    A user's token that does not say when it was issued is among them, however new it is. At
    `until_ms` the revocation ends: by then what it refuses must have run out by itself.
    """

    kind: RevocationKind
    id: str
    until_ms: int
    issued_until_ms: int = 0
    """Of a user's tokens; a token's id needs no such line."""

    def covers(self, token: TokenFacts) -> bool:
        """Whether this is a token that it refuses, while it lasts."""
        if self.kind == "token":
            return token.token_id == self.id
        user_id = token.user_id if self.kind == "user" else hidden(self.salt, token.user_id)
        return user_id == self.id and (
            token.issued_at_ms is None or token.issued_at_ms <= self.issued_until_ms
        )

    @property
    def salt(self) -> str:
        """What the id of an erased user is hidden with."""
        return self.id.partition(":")[0]

    def merged(self, other: Revocation) -> Revocation:
        """Both in one: the same user or token was revoked twice, and neither takes back."""
        return replace(
            self,
            until_ms=max(self.until_ms, other.until_ms),
            issued_until_ms=max(self.issued_until_ms, other.issued_until_ms),
        )


class RevocationList:
    """All revocations that have not ended, asked for every token."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[RevocationKind, str], Revocation] = {}
        self._ends: list[tuple[int, RevocationKind, str]] = []
        self._salts: Counter[str] = Counter()
        """Of erased users; in all likelihood one."""

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, revocation: Revocation, now_ms: int) -> None:
        """Take one in, and let go of those that have ended."""
        name = (revocation.kind, revocation.id)
        known = self._by_name.get(name)
        if known is not None:
            revocation = revocation.merged(known)
        if known is None and revocation.kind == "erased":
            self._salts[revocation.salt] += 1
        self._by_name[name] = revocation
        if known is None or known.until_ms != revocation.until_ms:
            heapq.heappush(self._ends, (revocation.until_ms, *name))
        while self._ends and self._ends[0][0] <= now_ms:
            _, kind, id_ = heapq.heappop(self._ends)
            ended = self._by_name.get((kind, id_))
            if ended is not None and ended.until_ms <= now_ms:  # it may have been prolonged
                del self._by_name[kind, id_]
                if kind == "erased":
                    self._salts -= Counter([ended.salt])

    def refuses(self, token: TokenFacts, now_ms: int) -> bool:
        """Whether a token has been revoked."""
        return self.find(token, now_ms) is not None

    def find(self, token: TokenFacts, now_ms: int) -> Revocation | None:
        """Why a token is refused; None if it has not been revoked."""
        candidates = [self._by_name.get(("user", token.user_id))]
        if token.token_id is not None:
            candidates.append(self._by_name.get(("token", token.token_id)))
        candidates += [
            self._by_name.get(("erased", hidden(salt, token.user_id))) for salt in self._salts
        ]
        for found in candidates:
            if found is not None and found.until_ms > now_ms and found.covers(token):
                return found
        return None
