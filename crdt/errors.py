"""What can be refused, and how it is told.

    RepSyncError            code              retryable
    ├── Unauthenticated     unauthenticated   no
    │   └── TokenExpired    token_expired     no    (a new token helps)
    ├── Forbidden           forbidden         no
    ├── NotFound            not_found         no
    │   └── Gone            not_found         no    it was deleted for good
    ├── Invalid             invalid           no    details: [{path, message}]
    ├── Conflict            conflict          no    details: what stands in the way
    ├── Locked              locked            no    until who manages the document unlocks it
    ├── RoomFull            room_full         yes   details: the capacity
    ├── TooLarge            too_large         no    details: {size_bytes, limit_bytes}
    │   └── TooMany         too_large         no    details: {count, limit}
    ├── RateLimited         rate_limited      yes   after retry_after_ms
    ├── Unsynced            unsynced          yes   after a sync
    └── Unavailable         unavailable       yes   the log cannot be written now
        ├── Outdated        unavailable       yes   at once: it was planned on what is no longer so
        └── DocumentDamaged unavailable       yes   not before somebody has mended the document

Each error becomes the same object in an ack, in a connect error and in `sync-rejected`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field


class RepSyncError(Exception):
    """An error that its cause, a client, is told about. The code is stable, the text is not."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, details: Any = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.details = details
        self.path: str | None = None
        """Where in the document, `sets.<id>`, if it is about one place."""
        self.retry_after_ms = retry_after_ms

    def to_wire(self) -> dict[str, Any]:
        """The error object of the wire contract."""
        wire: dict[str, Any] = {
            "code": self.code,
            "message": str(self),
            "retryable": self.retryable,
        }
        if self.details is not None:
            wire["details"] = self.details
        if self.retry_after_ms is not None:
            wire["retry_after_ms"] = self.retry_after_ms
        return wire


class Unauthenticated(RepSyncError):
    code = "unauthenticated"


class TokenExpired(Unauthenticated):
    code = "token_expired"


class Forbidden(RepSyncError):
    code = "forbidden"


class NotFound(RepSyncError):
    code = "not_found"


class Gone(NotFound):
    """It was deleted for good, and can never be again: what comes late of it is to be dropped."""

    def __init__(self, name: object) -> None:
        super().__init__(f"{name} was deleted for good")


class Invalid(RepSyncError):
    code = "invalid"

    @classmethod
    def at(cls, path: str, message: str) -> Invalid:
        """One thing is wrong, at `path` (`set.reps`)."""
        return cls(f"{path}: {message}", details=[{"path": path, "message": message}])


class Conflict(RepSyncError):
    code = "conflict"


class Locked(RepSyncError):
    """The document's content is held fast, for everybody."""

    code = "locked"


class RoomFull(RepSyncError):
    code = "room_full"
    retryable = True

    def __init__(self, what: str, capacity: int) -> None:
        super().__init__(f"there may be {capacity} {what}", details={"capacity": capacity})


class TooLarge(RepSyncError):
    code = "too_large"

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} of {size_bytes} bytes is over the limit of {limit_bytes}",
            details={"size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )


class TooMany(TooLarge):
    """There is no place for one more."""

    def __init__(self, what: str, count: int, limit: int) -> None:
        RepSyncError.__init__(
            self,
            f"{count} {what} are over the limit of {limit}",
            details={"count": count, "limit": limit},
        )


class RateLimited(RepSyncError):
    code = "rate_limited"
    retryable = True


class Unsynced(RepSyncError):
    """The update builds on changes that this server has not seen."""

    code = "unsynced"
    retryable = True


class Unavailable(RepSyncError):
    code = "unavailable"
    retryable = True


class Outdated(Unavailable):
    """It was planned on what is no longer so, and nothing of it was stored: ask again at once."""

    def __init__(self, message: str = "the document is being read again") -> None:
        super().__init__(message, retry_after_ms=100)


class DocumentDamaged(Unavailable):
    """What is stored of one document cannot be read. Others are not affected."""


Code = Literal[
    "unauthenticated",
    "token_expired",
    "forbidden",
    "not_found",
    "invalid",
    "conflict",
    "locked",
    "room_full",
    "too_large",
    "rate_limited",
    "unsynced",
    "unavailable",
    "internal",
]


class ErrorObject(BaseModel):
    """Why something was refused. The code is stable, the text is for people."""

    code: Code
    message: str
    retryable: bool
    details: Annotated[
        Any, Field(description="for `invalid` a list of `{path, message}`; else what the code says")
    ] = None
    retry_after_ms: Annotated[int, Field(ge=0)] | None = None


INTERNAL: dict[str, Any] = {"code": "internal", "message": "internal error", "retryable": True}
"""What a client is told of a failure that nobody foresaw; the trace stays in the log."""
