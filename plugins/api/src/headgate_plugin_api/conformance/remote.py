"""The suite for remote backends: subclass it as `TestSomething` and define `remote_case`.

No network: the case says what the provider would answer. May import the rest of the suite, the plugin API and
pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast, get_args

import msgspec
import pytest

from headgate_plugin_api.backend import RemoteBackend, TargetSpec, WholeAnswers
from headgate_plugin_api.conformance.answers import check_answer, same_answer, usage_of
from headgate_plugin_api.conformance.upstream import Reply, ScriptedUpstream, Sent
from headgate_plugin_api.errors import BackendError
from headgate_plugin_api.events import Event
from headgate_plugin_api.requests import InferenceRequest, Task
from headgate_plugin_api.usage import DIMENSIONS


@dataclass(frozen=True, kw_only=True)
class RemoteCase:
    """One remote backend, and a provider as a function.

    Attributes:
        backend: The object that the plugin registers.
        spec: The target; with an `api_key`, so that it can be looked for where it must not be.
        requests: Good requests, streams and whole ones.
        provider: What the provider answers to what is sent to it: with usage, and well.
    """

    backend: RemoteBackend
    spec: TargetSpec
    requests: tuple[InferenceRequest, ...]
    provider: Callable[[Sent], Reply]


class RemoteConformance:
    """Facts of the contract that every remote backend keeps."""

    def test_the_backend_describes_itself(self, remote_case: RemoteCase) -> None:
        """Name, kind and tasks are what the config goes by."""
        backend, spec = remote_case.backend, remote_case.spec
        assert backend.kind == "remote"
        assert backend.name == spec.backend
        assert backend.tasks <= set(get_args(Task))
        assert spec.task in backend.tasks

    def test_unknown_options_are_refused(self, remote_case: RemoteCase) -> None:
        """`headgate check` names a misspelt option, because the options type forbids unknown ones."""
        options_type = remote_case.backend.options_type
        msgspec.convert(remote_case.spec.options, options_type)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(remote_case.spec.options | {"no_such_option": 1}, options_type)

    def test_connecting_sends_nothing(self, remote_case: RemoteCase) -> None:
        """A worker starts whether or not the provider is up."""
        upstream = ScriptedUpstream(remote_case.provider)

        async def connect_and_close() -> None:
            await remote_case.backend.connect(remote_case.spec, upstream).close()

        asyncio.run(connect_and_close())
        assert upstream.sent == []

    def test_every_answer_is_complete_however_it_is_cut(self, remote_case: RemoteCase) -> None:
        """Any split of the provider's bytes gives the same answer, and the connection is let go after it."""
        for request in remote_case.requests:
            whole = answer(remote_case, request, ScriptedUpstream(remote_case.provider))
            check_answer(request, whole)
            for piece in (1, 7, 64):
                upstream = ScriptedUpstream(remote_case.provider, piece=piece)
                assert same_answer(answer(remote_case, request, upstream), whole, 0.0), f"pieces of {piece} bytes"
                assert all(response.closed for response in upstream.responses)

    def test_a_whole_answer_at_once_is_the_same(self, remote_case: RemoteCase) -> None:
        """`answer`, where a model has it, gives what `run` gives, and lets the connection go."""

        async def at_once(request: InferenceRequest) -> list[Event] | None:
            model = remote_case.backend.connect(remote_case.spec, upstream)
            try:
                return list(await model.answer(request)) if isinstance(model, WholeAnswers) else None
            finally:
                await model.close()

        for request in remote_case.requests:
            upstream = ScriptedUpstream(remote_case.provider)
            if not request.stream and (events := asyncio.run(at_once(request))) is not None:
                one_by_one = answer(remote_case, request, ScriptedUpstream(remote_case.provider))
                assert same_answer(events, one_by_one, 0.0), request.id
                assert all(response.closed for response in upstream.responses)

    def test_leaving_early_drops_the_call(self, remote_case: RemoteCase) -> None:
        """The provider must see at once that nobody listens."""
        for request in remote_case.requests:
            upstream = ScriptedUpstream(remote_case.provider, piece=16)
            answer(remote_case, request, upstream, most=1)
            assert all(response.closed for response in upstream.responses), request.id

    def test_the_bound_is_never_too_low(self, remote_case: RemoteCase) -> None:
        """A hold is taken from it."""
        for request in remote_case.requests:
            bound = remote_case.backend.bound(request, remote_case.spec)
            used = usage_of(answer(remote_case, request, ScriptedUpstream(remote_case.provider)))
            for name in DIMENSIONS if bound is not None else ():
                # What a provider reads from or writes to its cache was input when the bound was taken.
                if name in ("input", "output"):
                    assert getattr(bound, name) >= getattr(used, name), f"{request.id}: {name}"

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 529])
    def test_a_refusal_is_an_error_of_the_api_and_keeps_the_secret(
        self, remote_case: RemoteCase, status: int
    ) -> None:
        """Whatever the provider says, the credential is in no message."""
        secret = remote_case.spec.api_key or ""
        for body in (b"", b"<html>", b'{"error": {"message": "key %s"}}' % secret.encode(), b"\xff\x00"):
            upstream = ScriptedUpstream(always(Reply(status=status, body=body)))
            with pytest.raises(BackendError) as caught:
                answer(remote_case, remote_case.requests[0], upstream)
            assert not secret or secret not in str(caught.value)
            assert all(response.closed for response in upstream.responses)

    def test_nonsense_and_cut_answers_are_errors_of_the_api(self, remote_case: RemoteCase) -> None:
        """A lie is never a crash, and half an answer never a short one."""
        for request in remote_case.requests:
            upstream = ScriptedUpstream(remote_case.provider)
            answer(remote_case, request, upstream)
            reply = remote_case.provider(upstream.sent[0])
            bodies = [b"", b"[]", b"null", b"data: {}\n\n", b"\xff" * 100, reply.body[: len(reply.body) // 3]]
            for body in bodies:
                spoiled = with_body(reply, body)
                with pytest.raises(BackendError):
                    answer(remote_case, request, ScriptedUpstream(always(spoiled)))


def always(reply: Reply) -> Callable[[Sent], Reply]:
    """A provider that says one thing."""
    return lambda _: reply


def with_body(reply: Reply, body: bytes) -> Reply:
    """The same reply with another body."""
    return Reply(status=reply.status, headers=reply.headers, body=body)


def answer(
    case: RemoteCase, request: InferenceRequest, upstream: ScriptedUpstream, *, most: int | None = None
) -> list[Event]:
    """The events of an answer; the first `most` of them when the caller leaves early."""

    async def ask() -> list[Event]:
        model = case.backend.connect(case.spec, upstream)
        events: list[Event] = []
        async with aclosing(cast("AsyncGenerator[Event, None]", model.run(request))) as answered:
            async for event in answered:
                events.append(event)
                if most is not None and len(events) >= most:
                    break
        await model.close()
        return events

    return asyncio.run(ask())
