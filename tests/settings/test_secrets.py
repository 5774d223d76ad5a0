from __future__ import annotations

from pathlib import Path

import pytest
from headgate_gateway.config_file import resolve_paths
from headgate_gateway.settings import SecretError, admin_key, default_settings, pepper, resolve_secret
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
