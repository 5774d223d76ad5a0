"""The contract of a backend: what a plugin implements so that the gateway can run models with it.

There are two kinds. An *engine* backend runs in a process of its own (`python -m headgate_engine`): its heavy
imports belong in `load()`, which only that process calls. A *remote* backend runs in the gateway's workers and
must never block. May import requests, events, usage, errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from headgate_plugin_api.events import Event
from headgate_plugin_api.requests import Datatype, InferenceRequest, Task
from headgate_plugin_api.usage import Usage


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A local model as the config names it; handed to an engine backend.

    Attributes:
        id: The model's id for callers.
        task: What it does.
        backend: The backend's name, which is the name of its entry point.
        source: A folder, a file or `hf://org/name`; None where the backend needs none (echo).
        device: `cpu`, `cuda:0`, ... or `auto`.
        version: The version that callers may name under `/v2`.
        options: The backend's own options, already checked against its `options_type`.
        max_input_tokens: The operator's limit on input; None leaves the model's own.
        max_output_tokens: The operator's limit on output; None leaves the model's own.
    """

    id: str
    task: Task
    backend: str
    source: str | None = None
    device: str = "auto"
    version: str = "1"
    options: dict[str, Any] = {}
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None


class TensorSignature(msgspec.Struct, frozen=True, kw_only=True):
    """Name, datatype and shape of a model's input or output; -1 is a free dimension."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model once it is loaded; the engine sends it to whoever asks.

    Attributes:
        device: Where it runs: `cpu`, `cuda:0`.
        detail: One line for people: size, dtype, execution provider.
        max_input_tokens: The longest input it takes, specials included; None if it has no tokens.
        max_output_tokens: The longest output it makes; None if it makes no text.
        tokens_per_byte: An upper bound on input tokens per UTF-8 byte: 1 for byte-level tokenizers, 11 for
            others (NFKC may turn 3 bytes into 33).
        template_tokens: Tokens that specials and a chat template may add, at most, per message and per request.
        dimensions: Length of an embedding.
        fingerprint: Names what makes the numbers: weights, pooling, normalisation, prompts, dtype class.
        labels: Names of the classes of a classifier.
        inputs: Tensor signature under the Open Inference Protocol.
        outputs: The same for outputs.
        platform: What the Open Inference Protocol's metadata calls it (`onnxruntime`, `pytorch`).
    """

    device: str = "cpu"
    detail: str = ""
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    tokens_per_byte: int = 11
    template_tokens: int = 64
    dimensions: int | None = None
    fingerprint: str = ""
    labels: tuple[str, ...] = ()
    inputs: tuple[TensorSignature, ...] = ()
    outputs: tuple[TensorSignature, ...] = ()
    platform: str = ""


class LoadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far loading has come: a fraction from 0 to 1 and a word for people."""

    fraction: float
    what: str


Report = Callable[[LoadProgress], None]


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work for `run_batch`.

    Attributes:
        request: The request it belongs to.
        index: Its place among the request's items.
        tokens: What it costs in a batch; a padded model pays longest x count.
        data: Whatever `prepare` made of it; it never leaves the process.
        shape: Items of one batch have equal shapes (tensors of different ranks cannot be stacked).
    """

    request: InferenceRequest
    index: int
    tokens: int
    data: Any
    shape: tuple[Any, ...] = ()


@runtime_checkable
class BatchModel(Protocol):
    """A loaded model that answers in one pass: embed, rerank, classify, infer.

    `prepare` and `finish` run on threads beside the model's own; `run_batch` is called by the host's
    micro-batcher from one thread only, which decides the batch.
    """

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        """Tokenise or decode a request into items. Raises `InvalidRequest`."""
        ...

    def run_batch(self, items: Sequence[Item]) -> Sequence[Any]:
        """Run items of any requests together and return one result for each, in their order."""
        ...

    def finish(self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Any]) -> Sequence[Event]:
        """Fold a request's results into its events, `UsageReport` last."""
        ...

    def close(self) -> None:
        """Free what was taken. The process ends after it."""
        ...


class StepOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What one step made for one request. `done` says that nothing follows; `error` that it failed."""

    request_id: str
    events: tuple[Event, ...] = ()
    done: bool = False
    error: Exception | None = None


@runtime_checkable
class StepModel(Protocol):
    """A loaded model that makes its answer step by step: text generation.

    All methods are called from one thread, the host's step loop: admit what waits while there is room, step,
    hand out, cancel what nobody waits for.
    """

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        ...

    @property
    def room(self) -> int:
        """How many more requests `admit` would take now."""
        ...

    def admit(self, request: InferenceRequest) -> None:
        """Take a request in. Raises `InvalidRequest`; nothing is kept of a refused one."""
        ...

    def step(self) -> Sequence[StepOutput]:
        """Advance every admitted request by what one pass gives. Called only while any is admitted."""
        ...

    def cancel(self, request_id: str) -> Usage | None:
        """Drop a request and free its place; returns what it consumed so far. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """Free what was taken. The process ends after it."""
        ...


@runtime_checkable
class Paced(Protocol):
    """What a step model has besides when its next step may have nothing to do yet.

    The host waits that long, or until a request comes or goes, before it steps again; so a model that makes
    tokens at a pace (or polls something) neither spins nor blocks inside `step`.
    """

    @property
    def idle_s(self) -> float:
        """Seconds from now until the next step makes something; 0 when it would now."""
        ...


LoadedModel = BatchModel | StepModel


class EngineBackend(Protocol):
    """A backend whose models run in engine processes. The object itself must be cheap to make."""

    name: str
    kind: Literal["engine"]
    tasks: frozenset[Task]

    @property
    def options_type(self) -> type[msgspec.Struct]:
        """A strict struct (`forbid_unknown_fields`) of the `options` table, so that `check` can name a bad field.

        A class attribute will do.
        """
        ...

    def load(self, spec: ModelSpec, report: Report) -> LoadedModel:
        """Load a model, in the engine process. Heavy imports happen here. Raises `LoadFailed`."""
        ...

    def bound(self, request: InferenceRequest, spec: ModelSpec, info: ModelInfo | None) -> Usage | None:
        """An upper bound of what a request can consume, in the worker, or None for the gateway's general one.

        Must be cheap (well under a millisecond) and never too low: a hold is taken from it. `output` is the
        bound over all choices, given `request.max_output`. `info` is None until the model was ready once.
        """
        ...


class TargetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A remote target as the config names it; secrets are resolved already.

    Attributes:
        model: The configured model id.
        task: What it does.
        backend: The backend's name.
        upstream_model: The name that the provider knows it by.
        base_url: The provider's address.
        api_key: The credential, or None.
        options: The backend's own options, checked against its `options_type`.
        timeout_s: How long one answer may take.
    """

    model: str
    task: Task
    backend: str
    upstream_model: str
    base_url: str
    api_key: str | None = None
    options: dict[str, Any] = {}
    timeout_s: float = 600.0


class UpstreamResponse(Protocol):
    """An answer of a provider, its body not read yet."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        ...

    async def read(self, limit: int) -> bytes:
        """The whole body, refused with `UpstreamFailed` when it is longer than `limit` bytes."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        ...

    async def close(self) -> None:
        """Drop the connection if the body was not read to its end; the provider sees it at once."""
        ...


class Upstream(Protocol):
    """The HTTP client that the gateway lends to remote backends."""

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> UpstreamResponse:
        """Send a request and return when the headers have come.

        Raises:
            UpstreamFailed: No connection, or it broke.
            UpstreamTimeout: Nothing came in `timeout_s`.
        """
        ...


class RemoteModel(Protocol):
    """A connected remote target."""

    def run(self, request: InferenceRequest) -> AsyncIterator[Event]:
        """Ask the provider and yield the events of its answer as they come.

        Closing the iterator early must drop the upstream call at once. Raises the errors of this package.
        """
        ...

    async def close(self) -> None:
        """Free what was taken."""
        ...


@runtime_checkable
class WholeAnswers(Protocol):
    """What a remote model has besides when it can give all events of a whole answer at once.

    It saves the generators that one event after the other passes through. Streams come by `run` in any case.
    """

    async def answer(self, request: InferenceRequest) -> Sequence[Event]:
        """Ask the provider and return the events of its whole answer.

        Cancelled, it drops the upstream call at once. Raises what `run` raises.
        """
        ...


class RemoteBackend(Protocol):
    """A backend whose models live at a provider."""

    name: str
    kind: Literal["remote"]
    tasks: frozenset[Task]

    @property
    def options_type(self) -> type[msgspec.Struct]:
        """As for engine backends."""
        ...

    def connect(self, spec: TargetSpec, upstream: Upstream) -> RemoteModel:
        """Make a client for one target. No I/O yet."""
        ...

    def bound(self, request: InferenceRequest, spec: TargetSpec) -> Usage | None:
        """As for engine backends."""
        ...


Backend = EngineBackend | RemoteBackend
