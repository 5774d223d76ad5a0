from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from headgate_gateway.config_checks import against_plugins
from headgate_gateway.config_file import ConfigError, field_lines, line_of, read_config
from headgate_gateway.settings import read_snapshot, write_snapshot

GOOD = """\
[server]
port = 9000
data_dir = "data"
pepper = "file:secret"

[[models]]
id = "small"
task = "embed"
backend = "echo"
source = "weights"
price = { input = 0.1, request = "0.000000001" }

[[models]]
id = "far"
task = "chat"
[[models.targets]]
backend = "openai"
api_key = "env:KEY"
timeout_s = 1.5
[[models.targets]]
backend = "echo"
model = "small"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "headgate.toml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read_config(write(folder, text))
    return {problem.path: problem.message for problem in caught.value.problems}


def test_reads_amounts_exactly_and_makes_paths_absolute(tmp_path: Path) -> None:
    settings = read_config(write(tmp_path, GOOD)).settings
    assert settings.server.data_dir == tmp_path / "data"
    assert settings.server.pepper == f"file:{tmp_path}/secret"
    small, far = settings.models
    assert small.source == str(tmp_path / "weights")
    assert small.price is not None
    assert small.price.input == Decimal("0.1")
    assert small.price.rates() == {"input": "0.1", "request": "0.000000001"}
    assert far.targets[0].timeout_s == 1.5


def test_what_is_not_supported_may_stand_there_as_what_it_is_anyway(tmp_path: Path) -> None:
    """As a config that spells the defaults out has it."""
    model = '[[models]]\nid = "a"\ntask = "chat"\nbackend = "echo"\n'
    read_config(write(tmp_path, model + "warmup = true\nidle_unload_s = 0\ntimeout_s = 5"))
    read_config(write(tmp_path, '[server]\ncors_origins = ["*", "https://a.example:8443", "null"]'))


def test_a_snapshot_comes_back_the_same_and_private(tmp_path: Path) -> None:
    settings = read_config(write(tmp_path, GOOD)).settings
    write_snapshot(settings, tmp_path / "run" / "settings.json")
    assert read_snapshot(tmp_path / "run" / "settings.json") == settings
    assert (tmp_path / "run" / "settings.json").stat().st_mode & 0o777 == 0o600
    assert (
        json.loads((tmp_path / "run" / "settings.json").read_text())["models"][1]["targets"][0]["api_key"]
        == "env:KEY"
    )


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("[server]\nprt = 1", "server.prt", 'unknown key; did you mean "port"?'),
        ("[sever]", "sever", 'unknown key; did you mean "server"?'),
        ("engine_slots = {}", "engine_slots", "unknown key; expected one of grpc, log,"),
        ("[server]\nport = 70000", "server.port", "expected less than or equal to 65535, not 70000"),
        ('[server]\nport = "x"', "server.port", "expected a whole number"),
        ('[server]\nport = "8080"', "server.port", 'expected a whole number, not "8080"'),
        ("[server]\nworkers = true", "server.workers", "expected a whole number, not true"),
        ("[server]\nmax_body_mb = 1.5", "server.max_body_mb", "expected a whole number, not 1.5"),
        ('[server]\ndrain_s = "5"', "server.drain_s", 'expected a number, not "5"'),
        ("server = 1", "server", "expected a table, not 1"),
        ('[models]\nid = "a"', "models", "expected an array, not a table"),
        ('[metrics]\npublic = "no"', "metrics.public", 'expected true or false, not "no"'),
        ('[server]\ncors_origins = ["https://a.example/"]', "server.cors_origins[0]", "expected an origin"),
        ('[[models]]\ntask = "chat"', "models[0].id", "is required"),
        ('[[models]]\nid = "a b"\ntask = "chat"', "models[0].id", "string should match pattern"),
        ('[[models]]\nid = "a"\ntask = "tchat"', "models[0].task", "expected 'chat', 'completion'"),
        ('[[models]]\nid = "a"\ntask = "chat"', "models[0]", "needs `backend`"),
        ('[server]\ntls_cert = "a"', "server.tls_cert", "needs tls_key beside it"),
        ('[server]\nadmin_host = "::1"', "server.admin_host", "needs admin_port beside it"),
        ("[server]\nadmin_port = 8080", "server.admin_port", "expected another port than server.port"),
        ('[server]\ntrusted_proxies = ["*", "10.0.0.1/8"]', "server.trusted_proxies[1]", "expected an address"),
        (
            '[[models]]\nid = "a"\ntask = "chat"\nbackend = "echo"\nidle_unload_s = 9',
            "models[0].idle_unload_s",
            "is not supported by this version",
        ),
        ('[store]\nurl = "mysql://u:secret@h/d"', "store.url", 'expected "sqlite"'),
    ],
)
def test_errors_name_the_field_and_what_was_expected(tmp_path: Path, text: str, path: str, message: str) -> None:
    found = problems(tmp_path, text)
    assert found[path].startswith(message), found


@pytest.mark.parametrize("amount", ['"0.0000000001"', "-1", '"nan"', "inf", '"1e99"', '"abc"', "[]", "true"])
def test_an_amount_that_cannot_be_kept_exactly_is_refused(tmp_path: Path, amount: str) -> None:
    model = '[[models]]\nid = "a"\ntask = "chat"\nbackend = "echo"\nprice = { input = %s }'
    assert "models[0].price.input" in problems(tmp_path, model % amount)


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, '[server]\nport = -1\n\n[[models]]\nid = "a"\ntask = "chat"\nprice = { inptu = 1 }\n')
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.lines() == [
        f"{path}:2: server.port: expected greater than or equal to 0, not -1",
        f'{path}:7: models[0].price.inptu: unknown key; did you mean "input"?',
    ]


def test_names_are_taken_once(tmp_path: Path) -> None:
    model = '[[models]]\nid = "%s"\ntask = "chat"\nbackend = "echo"\naliases = ["%s"]\n'
    assert problems(tmp_path, model % ("a", "b") + model % ("b", "a")) == {
        "models[1].id": '"b" is taken by models[0].aliases[0]',
        "models[1].aliases[0]": '"a" is taken by models[0].id',
    }


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    text = '[[models]]\nid = "a"\ntask = "chat"\n[[models.targets]]\nbackend = "openai"\napi_key = 12345'
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text))
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port = ", "Invalid value"),
        ("a = " + "[" * 100_000, ""),
        ('a = "\x00"', ""),
    ],
)
def test_what_is_not_toml_is_an_error_of_the_file(tmp_path: Path, text: str, told: str) -> None:
    assert told in problems(tmp_path, text)[""]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="headgate init"):
        read_config(tmp_path / "none.toml")


def test_lines_are_found_through_nested_tables_and_multi_line_strings() -> None:
    multi_line = 'a = """\nb = 1\n"""\n'
    tables = "[[models]]\nid = 1\n[[models.targets]]\nx = 1\n[[models.targets]]\nx = 2\n[[models]]\nid = 2"
    text = multi_line + tables
    lines = field_lines(text)
    assert "b" not in lines
    assert line_of(lines, "models[0].targets[1].x") == 9
    assert line_of(lines, "models[1].id") == 11
    assert line_of(lines, "models[1].price.input") == 10
    assert line_of(lines, "nothing") is None


def checked(folder: Path, text: str) -> dict[str, str]:
    return {p.path: p.message for p in against_plugins(read_config(write(folder, text)).settings)}


def test_a_plugin_to_be_enabled_must_be_usable(tmp_path: Path) -> None:
    found = checked(tmp_path, '[plugins]\nenable = ["echo", "nowhere"]\n')
    assert list(found) == ["plugins.enable[1]"]
    assert "pip install headgate-nowhere" in found["plugins.enable[1]"]


def test_backends_are_asked_about_their_options(tmp_path: Path) -> None:
    model = '[[models]]\nid = "a"\ntask = "%s"\nbackend = "%s"\noptions = %s\n'
    assert checked(tmp_path, model % ("chat", "echo", "{ delay_ms = 1 }")) == {}
    assert (
        'did you mean "delay_ms"?'
        in checked(tmp_path, model % ("chat", "echo", "{ dlay_ms = 1 }"))["models[0].options.dlay_ms"]
    )
    assert "models[0].options.delay_ms" in checked(tmp_path, model % ("chat", "echo", '{ delay_ms = "x" }'))
    assert "echo does not do rerank" in checked(tmp_path, model % ("rerank", "echo", "{}"))["models[0].task"]
    unknown = checked(tmp_path, model % ("chat", "nope", "{}"))["models[0].backend"]
    assert 'no backend "nope" is installed (installed: echo, onnx, openai, torch)' in unknown
    assert "pip install headgate-nope" in unknown


def test_a_local_target_must_exist_and_fit(tmp_path: Path) -> None:
    text = """
[[models]]
id = "near"
task = "chat"
backend = "echo"
[[models]]
id = "far"
task = "%s"
[[models.targets]]
backend = "echo"
model = "%s"
"""
    assert checked(tmp_path, text % ("chat", "near")) == {}
    assert (
        "local model of this config (near)"
        in checked(tmp_path, text % ("chat", "nearr"))["models[1].targets[0].model"]
    )
    assert (
        "near does chat, far does completion"
        in checked(tmp_path, text % ("completion", "near"))["models[1].targets[0].model"]
    )


def test_embed_targets_must_agree(tmp_path: Path) -> None:
    target = '[[models.targets]]\nbackend = "openai"\nmodel = "%s"\nbase_url = "http://h/v1"\n'
    model = '[[models]]\nid = "e"\ntask = "embed"\n'
    assert checked(tmp_path, model + target % "m" + target % "m") == {}
    assert (
        "cannot stand in for each other"
        in checked(tmp_path, model + target % "m" + target % "n")["models[0].targets"]
    )
    same = target + 'fingerprint = "f"\n'
    assert checked(tmp_path, model + same % "m" + same % "n") == {}


@pytest.mark.parametrize("base_url", [None, "h/v1", "http://", "http://a b/v1", "https://h:port/v1"])
def test_a_remote_target_needs_an_address(tmp_path: Path, base_url: str | None) -> None:
    model = '[[models]]\nid = "far"\ntask = "chat"\n[[models.targets]]\nbackend = "openai"\nmodel = "m"\n'
    stated = "" if base_url is None else f'base_url = "{base_url}"'
    assert list(checked(tmp_path, model + stated)) == ["models[0].targets[0].base_url"]
    assert checked(tmp_path, model + 'base_url = "https://h:8443/v1"') == {}
