"""The environment: what is read from it, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.settings import Settings, SettingsError, generated_secret

SECRET = "a secret of more than thirty-two bytes"
KEYS_URL = "https://host.example/jwks"
NAMES = (
    *("HOST", "PORT", "DATA_DIR", "CORS_ORIGINS", "LOG_LEVEL", "LOG_FORMAT"),
    *("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"),
    *("REDIS_URL", "MONGODB_URI", "ROOM_IDLE_TIMEOUT_S", "COMPACT_AFTER", "MAX_UPDATE_BYTES"),
    *("AUTH_EXPIRING_NOTICE_S", "REVOCATION_LIFETIME_S"),
    *("JWT_JWKS_LIFETIME_S", "JWT_JWKS_STALE_S"),
    *("AUTH_EXPIRING_NOTICE_S", "MAX_EVENTS_PER_S", "MAX_USER_EVENTS_BURST", "MAX_JSON_DEPTH"),
    *("MAX_ROOMS_PER_CONNECTION", "HTTP_HEAD_TIMEOUT_S"),
    *("REDIS_PREFIX", "BUS_SECRET", "EMBEDDED_WORKER", "SPOOL_MAX_BYTES"),
    *("ALERT_WEBHOOK_URL", "ALERT_WEBHOOK_SECRET", "SENTRY_DSN"),
)


def public_pem() -> str:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def settings_of(monkeypatch: pytest.MonkeyPatch, **env: str) -> Settings:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return Settings.from_env()


def test_with_nothing_set_the_server_is_embedded_and_for_this_machine_only() -> None:
    settings = Settings.from_env()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8000, Path("data"))
    assert settings.is_loopback
    assert settings.jwt_secret is None
    assert settings.cors_origins == ()
    assert settings.log_level == "INFO"


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch,
        HOST="0.0.0.0",
        PORT="9000",
        DATA_DIR="/srv/data",
        JWT_SECRET=SECRET,
        JWT_ISSUER="app",
        JWT_AUDIENCE="repsync",
        CORS_ORIGINS="https://a.example, https://b.example,",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
        ROOM_IDLE_TIMEOUT_S="1.5",
        COMPACT_AFTER="7",
        MAX_UPDATE_BYTES="2048",
        AUTH_EXPIRING_NOTICE_S="0",
        JWT_JWKS_LIFETIME_S="60",
        JWT_JWKS_STALE_S="0",
        REVOCATION_LIFETIME_S="3600",
    )
    assert settings.jwt_secret is not None
    assert settings.jwt_secret.get_secret_value() == SECRET
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert (settings.host, settings.port, settings.data_dir) == ("0.0.0.0", 9000, Path("/srv/data"))
    assert (settings.jwt_issuer, settings.jwt_audience) == ("app", "repsync")
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert (settings.room_idle_timeout_s, settings.compact_after) == (1.5, 7)
    assert (settings.max_update_bytes, settings.auth_expiring_notice_s) == (2048, 0)
    assert (settings.jwt_jwks_lifetime_s, settings.jwt_jwks_stale_s) == (60, 0)
    assert settings.revocation_lifetime_s == 3600


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert settings_of(monkeypatch, **{name: ""}) == Settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert settings_of(monkeypatch, HOST=host).is_loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.nip.io"]
)
def test_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(SettingsError, match="HOST"):
        settings_of(monkeypatch, HOST=host)
    assert settings_of(monkeypatch, HOST=host, JWT_SECRET=SECRET).host == host


def test_a_public_key_is_key_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, HOST="0.0.0.0", JWT_PUBLIC_KEY=public_pem()).jwt_public_key


def test_two_keys_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET and JWT_PUBLIC_KEY are"):
        settings_of(monkeypatch, JWT_SECRET=SECRET, JWT_PUBLIC_KEY=public_pem())


@pytest.mark.parametrize("other", [{"JWT_SECRET": SECRET}, {"JWT_PUBLIC_KEY": public_pem()}])
def test_a_key_beside_a_key_set_is_one_too_many(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(other))} and JWT_JWKS_URL are"):
        settings_of(monkeypatch, JWT_JWKS_URL=KEYS_URL, **other)


def test_three_keys_are_two_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET and JWT_PUBLIC_KEY and JWT_JWKS_URL"):
        settings_of(
            monkeypatch, JWT_SECRET=SECRET, JWT_PUBLIC_KEY=public_pem(), JWT_JWKS_URL=KEYS_URL
        )


@pytest.mark.parametrize(
    "url",
    [
        KEYS_URL,
        "https://host.example:8443/a/b?tenant=x",
        "http://127.0.0.1:9000/keys",
        "http://127.1.2.3/keys",
        "http://[::1]:9000/keys",
        "http://localhost/keys",
    ],
)
def test_a_key_set_is_key_enough(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert settings_of(monkeypatch, HOST="0.0.0.0", JWT_JWKS_URL=url).jwt_jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://host.example/jwks",
        "http://127.0.0.1.nip.io/jwks",
        "http://localhost.example/jwks",
        "http://0.0.0.0/jwks",
        "http://10.0.0.1/jwks",
        "http://[::ffff:10.0.0.1]/jwks",
        "https://",
        "https:host.example/jwks",
        "https://host.example:port/jwks",
        "https://[::1/jwks",
        "https://host.example/a b",
        "https://ana:hunter2@host.example/jwks",
        "https://hunter2@host.example/jwks",
        "file:///etc/hunter2",
        "ftp://host.example/jwks",
        "data:application/json,{}",
        "host.example/jwks",
        "hunter2",
    ],
)
def test_a_key_set_comes_from_where_nobody_can_change_it_on_the_way(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(SettingsError, match="JWT_JWKS_URL") as refused:
        settings_of(monkeypatch, JWT_JWKS_URL=url)
    assert "hunter2" not in str(refused.value)


def test_a_secret_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, JWT_SECRET="x" * 32).jwt_secret
    assert settings_of(monkeypatch, JWT_SECRET="\N{SNOWMAN}" * 11).jwt_secret
    with pytest.raises(SettingsError, match="JWT_SECRET"):
        settings_of(monkeypatch, JWT_SECRET="x" * 31)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "-1"),
        ("PORT", "70000"),
        ("PORT", "80.5"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("ROOM_IDLE_TIMEOUT_S", "0"),
        ("ROOM_IDLE_TIMEOUT_S", "soon"),
        ("COMPACT_AFTER", "0"),
        ("MAX_UPDATE_BYTES", "10"),
        ("AUTH_EXPIRING_NOTICE_S", "-1"),
        ("CORS_ORIGINS", "app.example"),
        ("CORS_ORIGINS", "https://app.example/"),
        ("CORS_ORIGINS", "https://app.example, https://b.example/path"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "null"),
        ("MAX_EVENTS_PER_S", "0"),
        ("MAX_EVENTS_PER_S", "0.5"),
        ("MAX_USER_EVENTS_BURST", "0"),
        ("MAX_JSON_DEPTH", "1000"),
        ("MAX_ROOMS_PER_CONNECTION", "0"),
        ("HTTP_HEAD_TIMEOUT_S", "0"),
        ("MONGODB_URI", "http://127.0.0.1"),
        ("REDIS_PREFIX", "gym:one"),
        ("REDIS_PREFIX", "{gym}"),
        ("REDIS_PREFIX", "x" * 65),
        ("BUS_SECRET", "x" * 31),
        ("EMBEDDED_WORKER", "perhaps"),
        ("SPOOL_MAX_BYTES", "1000"),
        ("JWT_JWKS_LIFETIME_S", "0"),
        ("JWT_JWKS_LIFETIME_S", "inf"),
        ("JWT_JWKS_STALE_S", "-1"),
        ("JWT_JWKS_STALE_S", "nan"),
        ("REVOCATION_LIFETIME_S", "0"),
        ("REVOCATION_LIFETIME_S", "inf"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=name):
        settings_of(monkeypatch, **{name: value})


@pytest.mark.parametrize(
    "env",
    [
        {"JWT_SECRET": "hunter2"},
        {"JWT_SECRET": "hunter2" * 6, "JWT_PUBLIC_KEY": "hunter2"},
        {"JWT_SECRET": "hunter2" * 6, "PORT": "x"},
        {"REDIS_URL": "redis://:hunter2@host"},
        {"BUS_SECRET": "hunter2"},
        {"MONGODB_URI": "http://user:hunter2@host"},
    ],
)
def test_no_refusal_gives_a_secret_away(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_of(monkeypatch, **env)
    assert "hunter2" not in str(refused.value)


def test_the_settings_do_not_show_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch,
        JWT_SECRET=SECRET,
        BUS_SECRET=SECRET,
        MONGODB_URI="mongodb://user:hunter2@host/training",
        REDIS_URL="redis://user:hunter2@host",
    )
    for shown in (repr(settings), str(settings)):
        assert SECRET not in shown
        assert "hunter2" not in shown


def test_a_document_is_no_larger_than_what_mongodb_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    most = {"MAX_DOCUMENT_BYTES": str(12 * 1024 * 1024 + 1)}
    assert settings_of(monkeypatch, **most).mongodb_uri is None
    with pytest.raises(SettingsError, match="MAX_DOCUMENT_BYTES"):
        settings_of(monkeypatch, MONGODB_URI="mongodb://host", **most)


def test_several_instances_need_both_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    redis, mongodb = {"REDIS_URL": "redis://host"}, {"MONGODB_URI": "mongodb://host"}
    with pytest.raises(SettingsError, match="REDIS_URL is set and MONGODB_URI is not"):
        settings_of(monkeypatch, **redis)
    assert settings_of(monkeypatch, **redis, **mongodb).redis_url


def test_what_several_instances_need_has_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch, REDIS_URL="redis://host", MONGODB_URI="mongodb://host/training"
    )
    assert settings.redis_prefix == "repsync"
    assert settings.bus_secret is None
    assert settings.embedded_worker
    assert settings.spool_max_bytes == 256 * 1024 * 1024


def test_every_variable_of_several_instances_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch,
        REDIS_URL="rediss://user:hunter2@host:6380/2",
        MONGODB_URI="mongodb://host/training",
        REDIS_PREFIX="gym-1.eu_west",
        BUS_SECRET=SECRET,
        EMBEDDED_WORKER="false",
        SPOOL_MAX_BYTES="1048576",
    )
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "rediss://user:hunter2@host:6380/2"
    assert settings.bus_secret is not None
    assert settings.bus_secret.get_secret_value() == SECRET
    assert (settings.redis_prefix, settings.embedded_worker) == ("gym-1.eu_west", False)
    assert settings.spool_max_bytes == 1_048_576


def test_the_secret_of_the_bus_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, BUS_SECRET="x" * 32).bus_secret
    assert settings_of(monkeypatch, BUS_SECRET="\N{SNOWMAN}" * 11).bus_secret
    with pytest.raises(SettingsError, match="BUS_SECRET is shorter than the 32 bytes"):
        settings_of(monkeypatch, BUS_SECRET="x" * 31)


@pytest.mark.parametrize(
    "url", ["https://hooks.example/x?y=z", "http://alerts:8080/repsync", "http://[::1]:9/"]
)
def test_alerts_go_to_a_url_and_are_signed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    found = settings_of(monkeypatch, ALERT_WEBHOOK_URL=url, ALERT_WEBHOOK_SECRET=SECRET)
    assert found.alert_webhook_url is not None
    assert found.alert_webhook_url.get_secret_value() == url
    assert url not in repr(found)
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    "url", ["hooks.example", "ftp://hooks.example", "https://", "https://a b", "https://a:port"]
)
def test_what_is_no_url_for_alerts_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(SettingsError, match="ALERT_WEBHOOK_URL") as refused:
        settings_of(monkeypatch, ALERT_WEBHOOK_URL=url, ALERT_WEBHOOK_SECRET=SECRET)
    assert "hooks" not in str(refused.value)


@pytest.mark.parametrize("secret", ["", "too short"])
def test_alerts_are_not_sent_unsigned(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    with pytest.raises(SettingsError, match="ALERT_WEBHOOK_SECRET has not the 32 bytes"):
        settings_of(
            monkeypatch, ALERT_WEBHOOK_URL="https://host.example", ALERT_WEBHOOK_SECRET=secret
        )


def test_the_secret_of_a_folder_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    secret = generated_secret(folder)
    assert len(secret.encode()) >= 32
    assert stat.S_IMODE((folder / "jwt_secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert generated_secret(folder) == secret
    assert generated_secret(tmp_path / "other") != secret


def test_a_secret_that_somebody_put_there_is_taken_without_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text(SECRET + "\n")
    assert generated_secret(tmp_path) == SECRET


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        generated_secret(tmp_path)


def test_a_short_secret_file_is_refused_like_a_short_variable(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_text("hunter2")
    with pytest.raises(SettingsError) as refused:
        generated_secret(tmp_path)
    assert "hunter2" not in str(refused.value)


def test_a_secret_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(SettingsError):
        generated_secret(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="DATA_DIR"):
        generated_secret(tmp_path / "file" / "data")


def test_a_folder_in_place_of_the_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jwt_secret").mkdir()
    with pytest.raises(SettingsError, match="DATA_DIR"):
        generated_secret(tmp_path)
