from __future__ import annotations

from pathlib import Path

import pytest
from headgate_gateway.config_checks import against_plugins, consistency, unreadable_secrets
from headgate_gateway.config_file import resolve_paths
from headgate_gateway.settings import (
    SecretError,
    Settings,
    admin_key,
    database,
    default_settings,
    pepper,
    resolve_secret,
    shown_database,
)
from headgate_gateway.supervisor.data_folder import DataFolderError, ensure_secrets


def test_every_kind_of_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "from the environment")
    (tmp_path / "secret").write_text("from a file\n")
    assert resolve_secret("env:A_SECRET") == "from the environment"
    assert resolve_secret(f"file:{tmp_path}/secret") == "from a file"
    assert resolve_secret("cmd:echo from a command") == "from a command"
    assert resolve_secret("itself") == "itself"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("env:NOT_SET_ANYWHERE", "the environment variable is not set"),
        ("file:/does/not/exist", "No such file"),
        ("cmd:exit 3", "exit code 3"),
        ("cmd:true", "printed nothing"),
        ("", "is empty"),
    ],
)
def test_an_unreadable_secret_names_its_reference(reference: str, told: str) -> None:
    with pytest.raises(SecretError, match=told) as caught:
        resolve_secret(reference)
    assert str(caught.value).startswith(reference)


def test_the_environment_stands_over_the_admin_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve_paths(default_settings(), tmp_path)
    assert admin_key(settings.layout) is None
    ensure_secrets(settings)
    assert admin_key(settings.layout) == settings.layout.admin_key.read_text()
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", "given")
    assert admin_key(settings.layout) == "given"


def test_a_lost_pepper_is_not_replaced_under_a_store(tmp_path: Path) -> None:
    settings = resolve_paths(default_settings(), tmp_path)
    ensure_secrets(settings)
    assert len(pepper(settings)) == 64
    settings.layout.store.touch()
    settings.layout.pepper.unlink()
    with pytest.raises(DataFolderError, match="restore it"):
        ensure_secrets(settings)


def stored_at(url: str) -> Settings:
    return Settings.model_validate({"store": {"url": url}})


def test_a_database_may_be_named_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://gate:s3cret@db.example:5433/bills?sslmode=require"
    monkeypatch.setenv("BILLS", url)
    (tmp_path / "url").write_text(f"{url}\n")
    settings = resolve_paths(stored_at("file:url"), tmp_path)
    for stated in (stored_at(url), stored_at("env:BILLS"), settings):
        assert database(stated) == url
        assert shown_database(stated) == "PostgreSQL host=db.example port=5433 dbname=bills user=gate"
        assert [*consistency(stated), *against_plugins(stated), *unreadable_secrets(stated)] == []
    assert database(stored_at("sqlite")) is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://gate:s3cret@[::1/bills",
        "postgresql://gate:s3cret@h/bills?s3cret=1",
        "postgresql://gate:s3cret%zz@h/bills",
        "mysql://gate:s3cret@h/bills",
    ],
)
def test_a_wrong_address_is_named_without_its_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLS", url)
    for stated, check in ((stored_at(url), against_plugins), (stored_at("env:BILLS"), unreadable_secrets)):
        (problem,) = check(stated)
        assert problem.path == "store.url"
        assert "postgresql://user@host" in problem.message
        assert "s3cret" not in problem.message
    (problem,) = unreadable_secrets(stored_at("env:NOT_SET_ANYWHERE"))
    assert (problem.path, "not set" in problem.message) == ("store.url", True)
    assert against_plugins(stored_at("env:NOT_SET_ANYWHERE")) == []  # `check` also runs where the secrets are not


def test_a_pepper_that_cannot_be_read_is_told_before_anything_starts() -> None:
    """A file is made at the first start."""
    wanted = {
        "env:NOT_SET_ANYWHERE": ["server.pepper"],
        "cmd:false": ["server.pepper"],
        "file:/nowhere/pepper": [],
    }
    for reference, paths in wanted.items():
        stated = Settings.model_validate({"server": {"pepper": reference}})
        assert [problem.path for problem in unreadable_secrets(stated)] == paths
