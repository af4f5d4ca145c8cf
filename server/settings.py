"""Configuration from the environment, twelve-factor; the names are part of the wire contract."""

from __future__ import annotations

import os
import re
import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_SECRET_BYTES = 32
MAX_REVOCATION_S = 100 * 365 * 86_400
MAX_MONGODB_DOCUMENT_BYTES = 12 * 1024 * 1024
"""MongoDB's own limit is 16 MiB: the rest is for what goes into a log record beside the update."""
KEY_SETTINGS = ("jwt_secret", "jwt_public_key", "jwt_jwks_url")

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+")


class SettingsError(Exception):
    """The configuration does not hold together; the text says which variable and why."""


class Settings(BaseSettings):
    """Every setting, with the default of the embedded server.

    An empty variable counts as not set, which is how compose files and platforms unset one.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    data_dir: Path = Path("data")
    jwt_secret: SecretStr | None = None
    jwt_public_key: str | None = None
    jwt_jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "console", "json"] = "auto"

    mongodb_uri: SecretStr | None = None
    redis_url: SecretStr | None = None
    redis_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "repsync"
    bus_secret: SecretStr | None = None
    embedded_worker: bool = True
    worker_metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    spool_max_bytes: Annotated[int, Field(ge=64 * 1024)] = 256 * 1024 * 1024
    backlog_max_bytes: Annotated[int, Field(ge=64 * 1024)] = 512 * 1024 * 1024

    alert_webhook_url: SecretStr | None = None
    alert_webhook_secret: SecretStr | None = None
    sentry_dsn: SecretStr | None = None

    room_idle_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    compact_after: Annotated[int, Field(ge=1)] = 500
    max_update_bytes: Annotated[int, Field(ge=1_024)] = 4 * 1024 * 1024
    max_room_members: Annotated[int, Field(ge=1)] = 500
    max_room_connections: Annotated[int, Field(ge=1)] = 2_000
    send_budget_bytes: Annotated[int, Field(ge=64 * 1024)] = 1024 * 1024
    stall_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    ping_interval_s: Annotated[float, Field(gt=0)] = 25.0
    ping_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    max_connections: Annotated[int, Field(ge=1)] = 20_000
    max_connections_per_address: Annotated[int, Field(ge=1)] = 20_000
    max_sessions_per_user: Annotated[int, Field(ge=1)] = 200
    max_connects_per_s: Annotated[float, Field(gt=0)] = 2_000.0

    # What one connection, one user and one packet may hold or send; `welcome` tells them.
    max_document_bytes: Annotated[int, Field(ge=1_024)] = 8 * 1024 * 1024
    max_sets_per_workout: Annotated[int, Field(ge=1)] = 2_000
    max_exercises_per_document: Annotated[int, Field(ge=1)] = 200
    max_namespaces_per_connection: Annotated[int, Field(ge=1)] = 64
    max_rooms_per_connection: Annotated[int, Field(ge=1)] = 200
    max_streams_per_connection: Annotated[int, Field(ge=1)] = 200
    max_page_size: Annotated[int, Field(ge=1)] = 500
    max_events_per_s: Annotated[int, Field(ge=1)] = 200
    max_events_burst: Annotated[int, Field(ge=1)] = 2_000
    max_bytes_per_s: Annotated[int, Field(ge=1)] = 1024 * 1024
    max_bytes_burst: Annotated[int, Field(ge=1_024)] = 16 * 1024 * 1024
    max_user_events_per_s: Annotated[int, Field(ge=1)] = 1_000
    max_user_events_burst: Annotated[int, Field(ge=1)] = 10_000
    max_user_bytes_per_s: Annotated[int, Field(ge=1)] = 4 * 1024 * 1024
    max_user_bytes_burst: Annotated[int, Field(ge=1_024)] = 64 * 1024 * 1024
    max_json_bytes: Annotated[int, Field(ge=1_024)] = 1024 * 1024
    max_json_depth: Annotated[int, Field(ge=8, le=200)] = 32
    max_attachments_per_packet: Annotated[int, Field(ge=1)] = 10
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    http_head_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    http_body_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    http_idle_timeout_s: Annotated[float, Field(gt=0)] = 75.0

    drain_spread_s: Annotated[float, Field(ge=0)] = 5.0
    auth_expiring_notice_s: Annotated[float, Field(ge=0)] = 60.0
    jwt_jwks_lifetime_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    jwt_jwks_stale_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86_400.0
    revocation_lifetime_s: Annotated[float, Field(gt=0, le=MAX_REVOCATION_S)] = 30 * 86_400.0

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(origin.strip() for origin in value.split(",") if origin.strip())
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: scheme://host, a port if need be, and no path"
                )
        return origins

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @classmethod
    def from_env(cls) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: a variable is malformed, or the whole does not hold together.
        """
        try:
            settings = cls()
        except ValidationError as exc:
            error = exc.errors(include_url=False)[0]
            name = str(error["loc"][0]).upper() if error["loc"] else "settings"
            raise SettingsError(f"{name}: {error['msg']}") from exc
        settings.check()
        return settings

    def check(self) -> None:
        """Raises SettingsError where two settings contradict each other, or one lacks another."""
        if self.redis_url is not None and self.mongodb_uri is None:
            raise SettingsError(
                "REDIS_URL is set and MONGODB_URI is not: several instances need both, Redis for"
                " what is under way and MongoDB for what lasts"
            )
        if self.bus_secret and len(self.bus_secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise SettingsError("BUS_SECRET is shorter than the 32 bytes that it should have")
        if self.alert_webhook_url is not None:
            self._check_webhook(self.alert_webhook_url.get_secret_value())
        if self.mongodb_uri is not None:
            self._check_mongodb(self.mongodb_uri.get_secret_value())
        keys = [name.upper() for name in KEY_SETTINGS if getattr(self, name)]
        if len(keys) > 1:
            raise SettingsError(
                f"{' and '.join(keys)} are set at once; the key decides the algorithm,"
                " so there can be one only"
            )
        if self.jwt_jwks_url:
            _check_key_set_url(self.jwt_jwks_url)
        if self.jwt_secret and len(self.jwt_secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise SettingsError(
                "JWT_SECRET is shorter than the 32 bytes that HS256 asks for:"
                " openssl rand -base64 48 makes a good one"
            )
        if not self.is_loopback and not keys:
            raise SettingsError(
                f"HOST is {self.host}, which others can reach, and no key is configured:"
                " set JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL, or bind to 127.0.0.1"
            )

    def _check_mongodb(self, uri: str) -> None:
        if not uri.startswith(("mongodb://", "mongodb+srv://")):
            raise SettingsError("MONGODB_URI must begin with mongodb:// or mongodb+srv://")
        if self.max_document_bytes > MAX_MONGODB_DOCUMENT_BYTES:
            raise SettingsError(
                f"MAX_DOCUMENT_BYTES is {self.max_document_bytes}; with MONGODB_URI it may be"
                f" {MAX_MONGODB_DOCUMENT_BYTES}, or a change could be larger than one record of"
                " MongoDB's"
            )

    def _check_webhook(self, url: str) -> None:
        """The URL is not repeated: with some receivers it is all that one needs to know."""
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            is_url = False
        if not is_url or any(map(str.isspace, url)):
            raise SettingsError("ALERT_WEBHOOK_URL must be an https:// or http:// URL")
        secret = self.alert_webhook_secret
        if secret is None or len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise SettingsError(
                "ALERT_WEBHOOK_URL is set, and ALERT_WEBHOOK_SECRET has not the 32 bytes that it"
                " should have: alerts are signed with it"
            )

    @property
    def is_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")


def _check_key_set_url(url: str) -> None:
    """Raises SettingsError, which does not repeat the URL: it may hold a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise SettingsError("JWT_JWKS_URL is no URL") from exc
    if parts.scheme not in ("https", "http") or not host or any(map(str.isspace, url)):
        raise SettingsError("JWT_JWKS_URL must be an https:// URL")
    if parts.scheme == "http" and not _is_loopback(host):
        raise SettingsError(
            "JWT_JWKS_URL must be an https:// URL: over http:// anybody on the way could put in"
            " keys of their own (only this machine itself may serve it by http://)"
        )
    if parts.username is not None or parts.password is not None:
        raise SettingsError("JWT_JWKS_URL must not hold a user name or a password")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def generated_secret(folder: Path) -> str:
    """The secret of an embedded server, made on the first start and kept in its data folder.

    Raises:
        SettingsError: it cannot be read, or not be written.
    """
    path = folder / "jwt_secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # Made readable for its owner only from its first moment, and never overwritten.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = path.read_text().strip()
        else:
            secret = secrets.token_urlsafe(48)
            with os.fdopen(descriptor, "w") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
    except OSError as exc:
        raise SettingsError(f"DATA_DIR: {path} cannot be used: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise SettingsError(f"DATA_DIR: {path} is no text; delete it to get a new secret") from exc
    if len(secret.encode()) < MIN_SECRET_BYTES:
        what = "shorter than the 32 bytes that HS256 asks for" if secret else "empty"
        raise SettingsError(f"DATA_DIR: {path} is {what}; delete it to get a new secret")
    return secret
