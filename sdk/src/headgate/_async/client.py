"""`AsyncHeadgate`: the client. Make one per process and share it.

Resources are imported when they are first used, and what all of them go through with the first: they bring wire
types, and building those takes time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, cast

from headgate import settings
from headgate._core.clock import SYSTEM, Clock
from headgate._core.metering import Budget, Meter
from headgate._core.pacing import Pacer
from headgate._core.prices import PriceList
from headgate._core.request import Session
from headgate._core.retry import RetryPolicy
from headgate._core.tickets import Journal
from headgate._transport.types import DEFAULT_TIMEOUT, AsyncTransport, Timeout, Wiring
from headgate.errors import ConfigurationError
from headgate.settings import TransportName

if TYPE_CHECKING:
    from headgate._async.account import AsyncLimits, AsyncModels, AsyncUsage
    from headgate._async.admin import AsyncAdmin
    from headgate._async.chat import AsyncChat, AsyncCompletions
    from headgate._async.embeddings import AsyncEmbeddings
    from headgate._async.engine import AsyncEngine
    from headgate._async.layers import AsyncMiddleware
    from headgate._async.quotes import AsyncQuotes
    from headgate._async.responses import AsyncResponses
    from headgate._async.tasks import AsyncClassify, AsyncInfer, AsyncRerank
    from headgate._core.observing import Observer


class AsyncHeadgate:
    """A client of a Headgate gateway.

    Args:
        api_key: Your key; HEADGATE_API_KEY by default.
        base_url: The gateway's address, with or without `/v1`; HEADGATE_BASE_URL by default.
        timeout: The clocks; a number is the deadline of a whole call in seconds.
        max_retries: Tries after the first.
        retry: The whole retry policy, where `max_retries` is not enough.
        default_headers: Sent with every request.
        tags: Kept in every usage record.
        transport: "auto" takes pyreqwest where it is installed, else httpx; or an object of your own.
        wiring: Pool limits, HTTP/2, proxy, certificates, Unix socket.
        middleware: Around each attempt: `async def log(request, send)`, the first outermost.
        observers: Around each call, attempts and pauses together: functions that make a context manager.
        pace: Wait before requests that would hit the key's limit on requests, as answers tell it, instead of
            being refused; all threads and tasks of the client share the picture.
        clock: Time and chance; for tests.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: Timeout | float | None = DEFAULT_TIMEOUT,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        default_headers: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        transport: TransportName | AsyncTransport = "auto",
        wiring: Wiring | None = None,
        middleware: Sequence[AsyncMiddleware] = (),
        observers: Sequence[Observer] = (),
        pace: bool = False,
        clock: Clock = SYSTEM,
    ) -> None:
        policy = retry or RetryPolicy()
        if max_retries is not None:
            policy = dataclasses.replace(policy, max_retries=max_retries)
        clocks = Timeout.of(timeout, DEFAULT_TIMEOUT)
        session = Session(
            base_url=settings.base_url(base_url),
            api_key=settings.api_key(api_key),
            timeout=clocks,
            policy=policy,
            clock=clock,
            headers=default_headers or {},
            tags=tags or {},
            observers=observers,
            pacer=Pacer() if pace else None,
        )
        self._owner = True
        moving = _transport(transport, session.base_url, wiring or Wiring(), clocks)
        if middleware:
            from headgate._async.layers import AsyncLayers

            moving = AsyncLayers(moving, middleware)
        self._session, self._transport = session, moving
        self._journal, self._prices = Journal(), PriceList()

    @cached_property
    def _engine(self) -> AsyncEngine:
        from headgate._async.engine import AsyncEngine

        return AsyncEngine(self._session, self._transport, self._journal, self._prices)

    @cached_property
    def chat(self) -> AsyncChat:
        """Chat completions: `client.chat.completions`."""
        from headgate._async.chat import AsyncChat

        return AsyncChat(self._engine)

    @cached_property
    def completions(self) -> AsyncCompletions:
        """Legacy completions."""
        from headgate._async.chat import AsyncCompletions

        return AsyncCompletions(self._engine)

    @cached_property
    def embeddings(self) -> AsyncEmbeddings:
        """Embeddings."""
        from headgate._async.embeddings import AsyncEmbeddings

        return AsyncEmbeddings(self._engine)

    @cached_property
    def infer(self) -> AsyncInfer:
        """Tensors in, tensors out."""
        from headgate._async.tasks import AsyncInfer

        return AsyncInfer(self._engine)

    @cached_property
    def rerank(self) -> AsyncRerank:
        """Documents, best first."""
        from headgate._async.tasks import AsyncRerank

        return AsyncRerank(self._engine)

    @cached_property
    def classify(self) -> AsyncClassify:
        """Texts and their labels."""
        from headgate._async.tasks import AsyncClassify

        return AsyncClassify(self._engine)

    @cached_property
    def models(self) -> AsyncModels:
        """The models that the key may use."""
        from headgate._async.account import AsyncModels

        return AsyncModels(self._engine)

    @cached_property
    def limits(self) -> AsyncLimits:
        """The limits and budgets over the key."""
        from headgate._async.account import AsyncLimits

        return AsyncLimits(self._engine)

    @cached_property
    def usage(self) -> AsyncUsage:
        """What the ledger has, and whether it is what this client saw."""
        from headgate._async.account import AsyncUsage

        return AsyncUsage(self._engine)

    @cached_property
    def responses(self) -> AsyncResponses:
        """OpenAI's Responses."""
        from headgate._async.responses import AsyncResponses

        return AsyncResponses(self._engine)

    @cached_property
    def quotes(self) -> AsyncQuotes:
        """What a request would cost at most."""
        from headgate._async.quotes import AsyncQuotes

        return AsyncQuotes(self._engine)

    @cached_property
    def admin(self) -> AsyncAdmin:
        """What operators set and see; needs the scope `admin`."""
        from headgate._async.admin import AsyncAdmin

        return AsyncAdmin(self._engine)

    @property
    def base_url(self) -> str:
        """The gateway's address, without `/v1`."""
        return self._session.base_url

    def meter(self, tags: Mapping[str, str] | None = None) -> Meter:
        """Add up what the calls in a `with` block use; the tags go into their usage records as well.

        The block follows asyncio tasks that are started inside it; another thread joins by `with meter:` there.
        Meters nest; each adds up everything inside.
        """
        return Meter(tags)

    def budget(
        self,
        max_cost: object = None,
        *,
        max_tokens: int | None = None,
        strict: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> Budget:
        """A meter that says no: `with client.budget(max_cost="0.10") as budget`.

        A call whose upper bound does not fit raises `BudgetExceeded` before a byte leaves; a stream that would
        cross the budget is cut. Output counts as far as the call limits it (`max_tokens`): a whole answer without
        a limit is booked when it is there. The gateway's own budgets are exact for all clients; this one is for
        this block, and for what other threads do in a `with budget:` of their own.

        Args:
            max_cost: A decimal string in the gateway's currency.
            max_tokens: Tokens in and out together.
            strict: Refuse models whose price the gateway does not list.
            tags: As for a meter.
        """
        return Budget(max_cost, max_tokens, strict=strict, tags=tags)

    def with_options(
        self,
        *,
        api_key: str | None = None,
        timeout: Timeout | float | None = DEFAULT_TIMEOUT,
        max_retries: int | None = None,
        default_headers: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> AsyncHeadgate:
        """A copy with other defaults that shares the connections; closing it closes nothing."""
        old = self._session
        policy = old.policy
        if max_retries is not None:
            policy = dataclasses.replace(policy, max_retries=max_retries)
        key = old.api_key if api_key is None else settings.api_key(api_key)
        # Prices, limits and records are the key's own.
        same = key == old.api_key
        session = Session(
            base_url=old.base_url,
            api_key=key,
            timeout=old.timeout if timeout is DEFAULT_TIMEOUT else Timeout.of(timeout, old.timeout),
            policy=policy,
            clock=old.clock,
            headers={**old.extra_headers, **(default_headers or {})},
            tags={**old.tags, **(tags or {})},
            observers=old.observers,
            pacer=old.pacer if same or old.pacer is None else Pacer(),
        )
        copy = object.__new__(type(self))
        copy._owner = False
        copy._session, copy._transport = session, self._transport
        copy._journal, copy._prices = (self._journal, self._prices) if same else (Journal(), PriceList())
        return copy

    def __repr__(self) -> str:
        """Where it goes; never the key."""
        return f"<{type(self).__name__} {self.base_url}>"

    def __reduce__(self) -> NoReturn:
        """Connections do not travel.

        Raises:
            TypeError: Always; the message says what to do instead.
        """
        raise TypeError("a client holds connections and cannot be copied or pickled: make one in each process")

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._owner:
            await self._transport.close()

    async def __aenter__(self) -> AsyncHeadgate:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()


def _transport(
    given: TransportName | AsyncTransport, base_url: str, wiring: Wiring, timeout: Timeout
) -> AsyncTransport:
    """What moves the bytes; an HTTP library is imported only when it is the one."""
    if not isinstance(given, str):
        return given
    settings.forbid_sockets()
    if not isinstance(cast("object", wiring), Wiring):
        raise ConfigurationError(f"wiring: expected a Wiring, got {type(wiring).__name__}")
    if settings.is_fast(given, wiring.uds):
        from headgate._transport.by_pyreqwest import AsyncFastTransport

        return AsyncFastTransport(base_url, wiring, timeout)
    from headgate._transport.by_httpx import AsyncHttpxTransport

    return AsyncHttpxTransport(base_url, wiring)
