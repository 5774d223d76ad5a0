"""The config: `headgate.toml` as typed, checked settings. The only module that reads the environment.

May import the plugin API. Every field is documented in docs/config.md.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from headgate_plugin_api import Task
from pydantic import BaseModel, ConfigDict, Field

ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]{1,128}$")]
Disconnect = Literal["delivered", "drain", "waive"]


class Section(BaseModel):
    """A table of the config: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """`[server]`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    data_dir: Path = Path(".headgate")
    max_body_mb: int = Field(default=32, ge=1, le=1024)
    drain_s: float = Field(default=25.0, ge=0, le=600)
    stream_resume_s: float = Field(default=30.0, ge=0, le=600)
    pepper: str | None = None
    admin_host: str | None = None
    admin_port: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


class Store(Section):
    """`[store]`."""

    url: str = "sqlite"


class Grpc(Section):
    """`[grpc]`."""

    port: int = Field(default=8081, ge=0, le=65535)


class Log(Section):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


class Metrics(Section):
    """`[metrics]`."""

    public: bool = False


class Plugins(Section):
    """`[plugins]`: entry points to load besides the backends that models name."""

    enable: tuple[str, ...] = ()


class Price(Section):
    """`price = {...}`: decimal amounts of the deployment's currency. Tokens are per million."""

    input: Decimal | None = Field(default=None, ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)
    output: Decimal | None = Field(default=None, ge=0)
    reasoning: Decimal | None = Field(default=None, ge=0)
    request: Decimal | None = Field(default=None, ge=0)
    image: Decimal | None = Field(default=None, ge=0)
    audio_minute: Decimal | None = Field(default=None, ge=0)
    gpu_second: Decimal | None = Field(default=None, ge=0)


class Target(Section):
    """`[[models.targets]]`: one place where a model is answered."""

    backend: str
    model: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    weight: int = Field(default=1, ge=0)
    priority: int = Field(default=0, ge=0)
    options: dict[str, Any] = {}
    timeout_s: float | None = Field(default=None, gt=0)


class Model(Section):
    """`[[models]]`: either a local model (`backend`, `source`) or one with targets elsewhere.

    A target whose backend is an engine backend names a local model by its id in `model`, so that a remote
    model can fall back to one that this gateway serves itself.
    """

    id: ModelId
    task: Task
    backend: str | None = None
    source: str | None = None
    replicas: int = Field(default=1, ge=1, le=64)
    device: str = "auto"
    options: dict[str, Any] = {}
    price: Price | None = None
    targets: tuple[Target, ...] = ()
    aliases: tuple[ModelId, ...] = ()
    version: str = "1"
    max_input_tokens: int | None = Field(default=None, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    default_output: int = Field(default=4096, ge=1)
    disconnect: Disconnect = "delivered"
    queue_requests: int = Field(default=1024, ge=1)
    queue_tokens: int = Field(default=1_000_000, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    warmup: bool = True
    idle_unload_s: float = Field(default=0.0, ge=0)
    required: bool = True
    python: Path | None = None
    accept_token_ids: bool = False


class Settings(Section):
    """The whole config."""

    server: Server = Server()
    store: Store = Store()
    grpc: Grpc | None = None
    log: Log = Log()
    metrics: Metrics = Metrics()
    plugins: Plugins = Plugins()
    models: tuple[Model, ...] = ()
