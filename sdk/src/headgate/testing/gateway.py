"""The fake gateway: routes, ledger, idempotency, resumable streams, faults. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from headgate._core.money import format_nano
from headgate._transport.types import Request
from headgate.errors import ConnectionFailed, HeadgateError, TimedOut
from headgate.testing import answers
from headgate.testing.clock import FakeClock
from headgate.testing.faults import (
    Cut,
    Disconnect,
    Duplicate,
    ErrorEvent,
    FailAfterCommit,
    Fault,
    Garble,
    LoseOwner,
    Refuse,
    Stall,
)
from headgate.testing.ledger import FakeLedger
from headgate.testing.models import FakeModel
from headgate.testing.operator import FakeOperator

if TYPE_CHECKING:
    from headgate._async.client import AsyncHeadgate
    from headgate._sync.client import Headgate

BASE_URL = "http://headgate.fake"


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it reached the gateway."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass(slots=True)
class Reply:
    """What a transport hands out: pieces of the body, then an error or the end."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]
    end: HeadgateError | None = None


@dataclass(slots=True)
class _Claim:
    """An idempotency key: what came with it, and what it was answered."""

    fingerprint: bytes
    status: int
    headers: dict[str, str]
    events: list[bytes]
    stream: bool
    request_id: str
    resumable: bool
    lost: bool = False
    spent: bool = False
    document: dict[str, Any] = field(default_factory=dict[str, Any])


class FakeGateway:
    """A gateway in memory.

    Args:
        models: By id; `echo`, `embed`, `rerank`, `classify` and `double` (infer) by default.
        budget: A hard budget for everything, a decimal string.
        seed: For the jitter of the client's pauses.

    Attributes:
        clock: Its time; pauses of the clients pass at once.
        seen: Every request that arrived, in order.
        ledger: Its bills.
        operator: What `client.admin` sets and sees.
    """

    def __init__(
        self, models: Mapping[str, FakeModel] | None = None, *, budget: object = None, seed: int = 0
    ) -> None:
        self.models = dict(models) if models is not None else answers.default_models()
        self.clock = FakeClock(seed)
        self.seen: list[SeenRequest] = []
        self.ledger = FakeLedger(self.clock, budget)
        self.operator = FakeOperator()
        self._faults: deque[Fault] = deque()
        self._claims: dict[str, _Claim] = {}
        self._serial = 0

    def script(self, *faults: Fault) -> None:
        """Let the next inference requests meet these faults, one each, in order."""
        self._faults.extend(faults)

    @property
    def records(self) -> list[dict[str, Any]]:
        """A mapping per billed request, the oldest first."""
        return self.ledger.records

    @property
    def spent(self) -> int:
        """Nano-units billed so far."""
        return self.ledger.spent

    def client(self, **options: Any) -> Headgate:
        """A sync client of this gateway."""
        from headgate._sync.client import Headgate
        from headgate.testing.transports import FakeTransport

        return Headgate(**self._options(options), transport=FakeTransport(self))

    def async_client(self, **options: Any) -> AsyncHeadgate:
        """An async client of this gateway."""
        from headgate._async.client import AsyncHeadgate
        from headgate.testing.transports import AsyncFakeTransport

        return AsyncHeadgate(**self._options(options), transport=AsyncFakeTransport(self))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"api_key": "hg_fake", "base_url": BASE_URL, "clock": self.clock.as_clock(), **options}

    def handle(self, request: Request) -> Reply:
        """Answer one attempt.

        Raises:
            HeadgateError: What a transport would raise: no connection, silence.
        """
        split = urlsplit(request.url)
        path = unquote(split.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.seen.append(SeenRequest(request.method, path, query, dict(request.headers), request.body or b""))
        if path.startswith("/admin/v1/"):
            status, document = self.operator.handle(request.method, path, query, request.body)
            if status >= 400:
                return self._problem(status, document["code"], document["detail"])
            return self._whole(status, document)
        if request.method == "GET":
            return self._get(path, query)
        if path == "/v1/quotes":
            return self._quote(json.loads(request.body or b"{}"))
        return self._post(path, request)

    # -- reading -----------------------------------------------------------------------------------

    def _get(self, path: str, query: Mapping[str, str]) -> Reply:
        if path == "/v1/models":
            data = [answers.card(name, self.models[name]) for name in sorted(self.models)]
            return self._whole(200, {"object": "list", "data": data})
        if path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            if name not in self.models:
                return self._problem(404, "model_not_found", f"there is no model {name!r}")
            return self._whole(200, answers.card(name, self.models[name]))
        if path == "/v1/limits":
            return self._whole(200, {"limits": [], "budgets": []})
        if path == "/v1/usage":
            return self._whole(200, self.ledger.page(query))
        if path.startswith("/v1/usage/"):
            wanted = path.removeprefix("/v1/usage/")
            if (record := self.ledger.record(wanted)) is not None:
                return self._whole(200, record)
            return self._problem(404, "not_found", f"there is no record {wanted!r}")
        return self._problem(404, "not_found", f"there is no route {path}")

    def _quote(self, document: Mapping[str, Any]) -> Reply:
        name = str(document.get("model"))
        if name not in self.models:
            return self._problem(404, "model_not_found", f"there is no model {name!r}")
        return self._whole(200, answers.quote(name, self.models[name], document, self.ledger.price))

    # -- inference ---------------------------------------------------------------------------------

    def _post(self, path: str, request: Request) -> Reply:
        fault = self._faults.popleft() if self._faults else None
        if (early := self._before_work(fault, request)) is not None:
            return early
        body = request.body or b""
        try:
            document = json.loads(body[: answers.json_length(request.headers, body)])
        except ValueError as error:
            return self._problem(400, "invalid_request", f"not JSON: {error}")
        document["model"] = answers.model_of(path, document)
        fingerprint = hashlib.sha256(path.encode() + body).digest()
        key = request.headers.get("idempotency-key", "")
        claim = self._claims.get(key)
        if claim is not None:
            if claim.fingerprint != fingerprint:
                return self._problem(422, "idempotency_mismatch", "the key came with another body")
            return self._replay(claim, request, fault)
        return self._work(path, document, body, fingerprint, key, request, fault)

    def _before_work(self, fault: Fault | None, request: Request) -> Reply | None:
        if isinstance(fault, Refuse):
            headers = dict(fault.headers)
            if fault.retry_after is not None:
                headers["retry-after-ms"] = f"{fault.retry_after * 1000:g}"
            return self._problem(
                fault.status, fault.code, f"scripted {fault.code or fault.status}", headers, fault.members
            )
        if isinstance(fault, Disconnect):
            raise ConnectionFailed("scripted disconnect", phase=fault.phase)
        if isinstance(fault, Stall) and fault.after is None:
            raise self._silence("first_byte", request.first_byte, request)
        if isinstance(fault, Garble):
            headers = {**self._headers(), "content-type": fault.content_type}
            return Reply(200, headers, [fault.body])
        return None

    def _silence(self, clock: str, seconds: float, request: Request) -> TimedOut:
        self.clock.advance(seconds)
        if seconds >= request.remaining:
            return TimedOut("the deadline passed", clock="deadline", seconds=seconds)
        return TimedOut(f"scripted silence of {seconds:g} s", clock=clock, seconds=seconds)

    def _work(
        self,
        path: str,
        document: dict[str, Any],
        body: bytes,
        fingerprint: bytes,
        key: str,
        request: Request,
        fault: Fault | None,
    ) -> Reply:
        name = document["model"]
        if name not in self.models:
            return self._problem(404, "model_not_found", f"there is no model {name!r}")
        model = self.models[name]
        made = answers.make(path, document, body, request.headers, model)
        if isinstance(made, answers.Bad):
            return self._problem(400, "invalid_request", made.message, members={"path": made.path})
        nano = self.ledger.price(model, made.tokens_in, made.tokens_out)
        if (refusal := self.ledger.refusal(nano)) is not None:
            code, members = refusal
            return self._problem(402, code, "the budget is spent", {"x-should-retry": "false"}, members)
        self._serial += 1
        request_id = f"req_{self._serial:032d}"
        headers = self._headers(request_id)
        claim = _Claim(
            fingerprint,
            200,
            headers,
            [],
            bool(document.get("stream")),
            request_id,
            "headgate-resumable" in request.headers,
            document=document,
        )
        if key:
            self._claims[key] = claim
        tags = answers.tags_of(request.headers)
        if claim.stream:
            return self._stream(claim, made, model, tags, fault, request)
        self._bill(claim, tags, made.tokens_in, made.tokens_out, nano)
        headers["headgate-cost"] = format_nano(nano)
        headers["content-type"] = made.content_type
        headers.update(made.headers)
        claim.events = [made.encode(request_id, format_nano(nano))]
        if isinstance(fault, FailAfterCommit):
            return self._after_commit(fault)
        return Reply(200, headers, answers.pieces(claim.events, fault))

    def _after_commit(self, fault: FailAfterCommit) -> Reply:
        if fault.status is None:
            raise ConnectionFailed("scripted reset after the work was done", phase="first_byte")
        return self._problem(fault.status, "internal_error", "scripted failure after the work was done")

    def _bill(self, claim: _Claim, tags: dict[str, str], tokens_in: int, tokens_out: int, nano: int) -> None:
        self.ledger.bill(claim.request_id, claim.document["model"], tokens_in, tokens_out, nano, tags)

    def _stream(
        self,
        claim: _Claim,
        made: answers.Made,
        model: FakeModel,
        tags: dict[str, str],
        fault: Fault | None,
        request: Request,
    ) -> Reply:
        nano = self.ledger.price(model, made.tokens_in, made.tokens_out)
        events = made.events(claim.request_id, format_nano(nano))
        claim.events = [
            b"id: %s:%d\n%s" % (claim.request_id.encode(), number, event) if claim.resumable else event
            for number, event in enumerate(events)
        ]
        claim.headers["content-type"] = "text/event-stream"
        if isinstance(fault, FailAfterCommit):
            self._bill(claim, tags, made.tokens_in, made.tokens_out, nano)
            return self._after_commit(fault)
        cut = getattr(fault, "after", None)
        if cut is None or claim.resumable:
            self._bill(claim, tags, made.tokens_in, made.tokens_out, nano)
        elif cut == 0:
            # Nothing was delivered and nothing is billed: the key runs again.
            self._claims = {key: kept for key, kept in self._claims.items() if kept is not claim}
        else:
            tokens = min(cut, made.tokens_out)
            self._bill(claim, tags, made.tokens_in, tokens, self.ledger.price(model, made.tokens_in, tokens))
            claim.spent = True
        return self._relay(claim, 0, fault, request)

    def _relay(self, claim: _Claim, start: int, fault: Fault | None, request: Request) -> Reply:
        """A stream from an event on, through its fault."""
        events = claim.events[start:]
        headers = dict(claim.headers)
        if isinstance(fault, Cut):
            reason = None if fault.tidy else ConnectionFailed("scripted cut", phase="body")
            return Reply(200, headers, events[: fault.after], reason)
        if isinstance(fault, Stall) and fault.after is not None:
            return Reply(200, headers, events[: fault.after], self._silence("idle", request.idle, request))
        if isinstance(fault, ErrorEvent):
            return Reply(200, headers, [*events[: fault.after], answers.error_event(fault.code)])
        if isinstance(fault, Duplicate) and claim.resumable:
            events = [event for event in events for _ in range(2)]
        return Reply(200, headers, answers.pieces(events, fault))

    def _replay(self, claim: _Claim, request: Request, fault: Fault | None) -> Reply:
        after = request.headers.get("last-event-id")
        if after is not None and claim.resumable:
            if claim.lost or isinstance(fault, LoseOwner):
                claim.lost = True
                members = {
                    "record_id": claim.request_id,
                    "cost": (self.ledger.record(claim.request_id) or {"cost": "0"})["cost"],
                }
                headers = {"x-should-retry": "false"}
                return self._problem(409, "stream_lost", "the stream's owner has gone", headers, members)
            return self._relay(claim, int(after.rpartition(":")[2]) + 1, fault, request)
        if claim.spent:
            members = {"record_id": claim.request_id}
            headers = {"x-should-retry": "false"}
            return self._problem(409, "idempotency_consumed", "the key was billed", headers, members)
        headers = {**claim.headers, "idempotency-replayed": "true"}
        if claim.stream:
            relayed = self._relay(claim, 0, fault, request)
            relayed.headers = headers
            return relayed
        return Reply(claim.status, headers, answers.pieces(claim.events, fault))

    # -- answers -----------------------------------------------------------------------------------

    def _headers(self, request_id: str | None = None) -> dict[str, str]:
        if request_id is None:
            self._serial += 1
            request_id = f"req_{self._serial:032d}"
        return {
            "x-request-id": request_id,
            "headgate-version": "fake",
            "headgate-backend": "fake",
            "headgate-attempts": "1",
            "headgate-price": "price_fake",
            "content-type": "application/json",
        }

    def _whole(self, status: int, document: Mapping[str, Any]) -> Reply:
        return Reply(status, self._headers(), [json.dumps(document).encode()])

    def _problem(
        self,
        status: int,
        code: str | None,
        detail: str,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> Reply:
        document = {
            "type": f"https://headgate.dev/problems/{code}",
            "title": code,
            "status": status,
            "detail": detail,
            **({"code": code} if code else {}),
            **(members or {}),
            "error": {"message": detail, "type": code, "code": code},
        }
        merged = {**self._headers(), "content-type": "application/problem+json", **(headers or {})}
        return Reply(status, merged, [json.dumps(document).encode()])
