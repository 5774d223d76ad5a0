"""The config: `headgate.toml` as typed, checked settings. The only module that reads the environment.

How a file becomes settings, and how errors in it are told, is `config_file`. May import the plugin API and
layout. Every field is documented in docs/config.md.
"""

from __future__ import annotations

import os
import subprocess  # runs the operator's own `cmd:` secrets
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from headgate_plugin_api import Task
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from headgate_gateway.layout import Layout

ADMIN_KEY_VARIABLE: Final = "HEADGATE_ADMIN_KEY"
CONFIG_VARIABLE: Final = "HEADGATE_CONFIG"
CRASH_VARIABLE: Final = "HEADGATE_CRASH_AT"
DEFAULT_CONFIG: Final = Path("headgate.toml")
SECRET_TIMEOUT_S: Final = 30.0
"""How long a `cmd:` secret may take."""

MAX_DECIMALS: Final = 9
"""Amounts are kept as whole nano-units (1e-9); a finer one could not be kept exactly."""

MAX_AMOUNT: Final = Decimal(9_000_000_000)
"""What still fits a signed 64-bit number of nano-units."""


def _exact(amount: Decimal) -> Decimal:
    """Refuse what nano-units cannot hold exactly."""
    if not amount.is_finite() or amount > MAX_AMOUNT:
        raise ValueError(f"expected an amount from 0 to {MAX_AMOUNT}")
    if amount != round(amount, MAX_DECIMALS):
        raise ValueError(f"expected at most {MAX_DECIMALS} decimals")
    return amount


MOST_WORKERS: Final = 256
LONGEST_S: Final = 3600.0
"""A request may take no longer; a node that is silent for more than that is given up."""

POSTGRESQL: Final = ("postgresql://", "postgres://")
"""How a database's address begins."""

REFERENCES: Final = ("env:", "file:", "cmd:")
"""How a reference to a secret begins; see `resolve_secret`."""

Amount = Annotated[Decimal, Field(ge=0), AfterValidator(_exact)]
"""A decimal amount of the deployment's currency."""

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
"""TOML has types: `"8080"` is no port, and neither is `true`."""

ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,128}$")]
Disconnect = Literal["delivered", "drain", "waive"]


class Section(BaseModel):
    """A table of the config: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """`[server]`."""

    host: str = "127.0.0.1"
    port: Whole = Field(default=8080, ge=0, le=65535)
    workers: Whole = Field(default=1, ge=1, le=MOST_WORKERS)
    data_dir: Path = Path(".headgate")
    max_body_mb: Whole = Field(default=32, ge=1, le=1024)
    drain_s: Number = Field(default=25.0, ge=0, le=600)
    stream_resume_s: Number = Field(default=30.0, ge=0, le=600)
    pepper: str | None = None
    admin_host: str = "127.0.0.1"
    admin_port: Whole | None = Field(default=None, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


class Store(Section):
    """`[store]`."""

    url: str = "sqlite"  # or a database's address, or a reference to one: see `database`

    @property
    def shared(self) -> bool:
        """Whether it is a database, which other nodes may share, instead of SQLite in the data folder."""
        return self.url != "sqlite"


class Grpc(Section):
    """`[grpc]`."""

    port: Whole = Field(default=8081, ge=0, le=65535)


class Log(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    access: Flag = True


class Metrics(Section):
    """`[metrics]`."""

    public: Flag = False


class Plugins(Section):
    """`[plugins]`: entry points to load besides the backends that models name."""

    enable: tuple[str, ...] = ()


class Rates(Section):
    """Decimal amounts of the deployment's currency. Tokens are per million."""

    input: Amount | None = None
    cache_read: Amount | None = None
    cache_write: Amount | None = None
    output: Amount | None = None
    reasoning: Amount | None = None
    request: Amount | None = None
    image: Amount | None = None
    audio_minute: Amount | None = None
    gpu_second: Amount | None = None

    def flat(self) -> dict[str, str]:
        """The rates that are set, as plain decimal texts."""
        amounts = {name: getattr(self, name) for name in Rates.model_fields}
        return {name: format(amount, "f") for name, amount in amounts.items() if amount is not None}


class PriceTier(Rates):
    """Rates beyond a threshold: input tokens of the request (`context`), or units of a rate (`graduated`)."""

    above: Whole = Field(ge=1, le=10**12)


class Price(Rates):
    """`price = {...}`, with tiers of one kind and a minimum per request where there are any."""

    minimum: Amount | None = None
    context: tuple[PriceTier, ...] = ()
    graduated: tuple[PriceTier, ...] = ()

    def rates(self) -> dict[str, str | tuple[dict[str, str | int], ...]]:
        """What is set, as the ledger's commands take it: decimal texts by rate, `minimum`, tiers."""
        quote: dict[str, str | tuple[dict[str, str | int], ...]] = {**self.flat()}
        if self.minimum is not None:
            quote["minimum"] = format(self.minimum, "f")
        for kind, tiers in (("context", self.context), ("graduated", self.graduated)):
            if tiers:
                quote[kind] = tuple({"above": tier.above, **tier.flat()} for tier in tiers)
        return quote


class Target(Section):
    """`[[models.targets]]`: one place where a model is answered."""

    backend: str
    model: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    weight: Whole = Field(default=1, ge=0)
    priority: Whole = Field(default=0, ge=0)
    options: dict[str, Any] = {}
    timeout_s: Number | None = Field(default=None, gt=0, le=LONGEST_S)
    fingerprint: str | None = None


class Model(Section):
    """`[[models]]`: either a local model (`backend`, `source`) or one with targets elsewhere.

    A target whose backend is an engine backend names a local model by its id in `model`, so that a remote
    model can fall back to one that this gateway serves itself.
    """

    id: ModelId
    task: Task
    backend: str | None = None
    source: str | None = None
    replicas: Whole = Field(default=1, ge=1, le=64)
    device: str = "auto"
    options: dict[str, Any] = {}
    price: Price | None = None
    targets: tuple[Target, ...] = ()
    aliases: tuple[ModelId, ...] = ()
    version: str = Field(default="1", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    max_input_tokens: Whole | None = Field(default=None, ge=1)
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    default_output: Whole = Field(default=4096, ge=1)
    disconnect: Disconnect = "delivered"
    queue_requests: Whole = Field(default=1024, ge=1)
    queue_tokens: Whole = Field(default=1_000_000, ge=1)
    timeout_s: Number = Field(default=600.0, gt=0, le=LONGEST_S)
    warmup: Flag = True
    idle_unload_s: Number = Field(default=0.0, ge=0)
    required: Flag = True
    python: Path | None = None
    accept_token_ids: Flag = False


class Settings(Section):
    """The whole config.

    `engine_slots` never stands in a file: the supervisor fills it in before it hands settings to its children.
    """

    server: Server = Server()
    store: Store = Store()
    grpc: Grpc | None = None
    log: Log = Log()
    metrics: Metrics = Metrics()
    plugins: Plugins = Plugins()
    models: tuple[Model, ...] = ()
    engine_slots: dict[str, int] = {}

    def slot(self, model_id: str) -> int:
        """The number that the sockets of a model's engines carry (`Layout.engine_socket`).

        The supervisor hands out the numbers, so that a reload which reorders the config neither restarts an
        engine nor lets a worker of the old config reach another model's. A config's own order is the default.

        Raises:
            KeyError: No such model.
        """
        if model_id in self.engine_slots:
            return self.engine_slots[model_id]
        for index, model in enumerate(self.models):
            if model.id == model_id:
                return index
        raise KeyError(model_id)

    @property
    def model_names(self) -> dict[str, str]:
        """The ids of the models by each of their names, aliases included."""
        names = {alias: model.id for model in self.models for alias in model.aliases}
        return names | {model.id: model.id for model in self.models}

    @property
    def plugin_names(self) -> list[str]:
        """The plugins that the config names: backends, and those to load besides."""
        backends = [
            name for model in self.models for name in (model.backend, *(t.backend for t in model.targets))
        ]
        return list(dict.fromkeys([*filter(None, backends), *self.plugins.enable]))

    @property
    def layout(self) -> Layout:
        """Where everything of this deployment lies."""
        return Layout.of(self.server.data_dir)


class SecretError(Exception):
    """A secret could not be read; the message names the reference, never the secret."""


def resolve_secret(reference: str) -> str:
    """The secret that a reference stands for.

    Args:
        reference: `env:NAME` (environment variable), `file:PATH` (contents without the line end), `cmd:COMMAND`
            (what a shell command prints), or the secret itself.

    Raises:
        SecretError: It cannot be read or is empty.
    """
    kind, _, rest = reference.partition(":")
    match kind:
        case "env":
            value = os.environ.get(rest, "")
            why = "the environment variable is not set"
        case "file":
            try:
                value = Path(rest).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SecretError(f"{reference}: {error}") from error
            why = "the file is empty"
        case "cmd":
            value = _printed(rest)
            why = "the command printed nothing"
        case _:
            value, why = reference, "the secret is empty"
    if not value:
        raise SecretError(f"{reference}: {why}")
    return value


def _printed(command: str) -> str:
    """What a `cmd:` secret's command prints. It is the operator's own line from the operator's own file."""
    try:
        done = subprocess.run(  # noqa: S602  a shell line is what the config promises
            command, shell=True, capture_output=True, text=True, timeout=SECRET_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SecretError(f"cmd:{command}: no answer within {SECRET_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise SecretError(f"cmd:{command}: exit code {done.returncode}: {done.stderr.strip()[:200]}")
    return done.stdout.strip()


def admin_key(layout: Layout) -> str | None:
    """The admin key: `HEADGATE_ADMIN_KEY`, else the data folder's file, else None (it was never served)."""
    if given := os.environ.get(ADMIN_KEY_VARIABLE):
        return given
    try:
        return layout.admin_key.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None


def pepper(settings: Settings) -> bytes:
    """What key hashes and chains are keyed with.

    Raises:
        SecretError: It cannot be read.
    """
    return resolve_secret(settings.server.pepper or f"file:{settings.layout.pepper}").encode()


def database(settings: Settings) -> str | None:
    """The PostgreSQL database of a deployment as libpq takes it, None where the store is SQLite.

    It may hold a password: it is for connecting and nothing else, see `shown_database`.

    Raises:
        SecretError: It cannot be read, is no database's address, or psycopg is not installed.
    """
    if not settings.store.shared:
        return None
    url = resolve_secret(settings.store.url)
    try:
        from psycopg import ProgrammingError, conninfo
    except ImportError:
        raise SecretError(
            'store.url: PostgreSQL needs psycopg: pip install "headgate-gateway[postgres]"'
        ) from None
    try:
        if not url.startswith(POSTGRESQL):
            raise ValueError(url)
        conninfo.conninfo_to_dict(url)
    except (ProgrammingError, ValueError):  # their texts quote the address, password and all
        raise SecretError("store.url: expected an address such as postgresql://user@host:5432/database") from None
    return url


def shown_database(settings: Settings) -> str:
    """Where the store is, for people: no password, no secret."""
    if (url := database(settings)) is None:
        return str(settings.layout.store)
    from psycopg import conninfo

    parts = conninfo.conninfo_to_dict(url)
    told = [f"{name}={parts[name]}" for name in ("host", "hostaddr", "port", "dbname", "user") if parts.get(name)]
    return "PostgreSQL " + " ".join(told)


def config_path(given: Path | None) -> Path:
    """Which config a command means: the one given, `HEADGATE_CONFIG`, or `./headgate.toml`."""
    return given or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def crash_order() -> str | None:
    """Where this process is to die, for tests of crash safety; see `crashpoints`."""
    return os.environ.get(CRASH_VARIABLE)


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a child process: ours, and what the child needs besides."""
    return {**os.environ, **extra}


def default_settings() -> Settings:
    """What `headgate serve` runs without a config: the echo model, priced so that bills show something."""
    price = Price(input=Decimal("0.15"), output=Decimal("0.60"))
    return Settings(models=(Model(id="echo", task="chat", backend="echo", price=price),))


def write_snapshot(settings: Settings, path: Path) -> None:
    """Hand checked settings to child processes: JSON, secrets unresolved, mode 0600, written at once or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(settings.model_dump_json())
    draft.replace(path)


def read_snapshot(path: Path) -> Settings:
    """The settings that a process was started with."""
    return Settings.model_validate_json(path.read_bytes())
