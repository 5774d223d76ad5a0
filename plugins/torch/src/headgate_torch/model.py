"""A loaded model: requests in, events out, one batched forward a step.

May import torch, the plugin API and the rooms beside it. Called from one thread, the host's step loop.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    Event,
    Finished,
    FinishReason,
    InferenceRequest,
    InvalidRequest,
    ModelInfo,
    StepOutput,
    TextDelta,
    UpstreamFailed,
    Usage,
    UsageReport,
)

from headgate_torch.batch import Batch
from headgate_torch.prompts import Prompt, Prompts
from headgate_torch.sampling import Defaults, Drawer, Rule, check, draw
from headgate_torch.text import Detokenizer, StopScanner

PREFILL_TOKENS: Final = 512
"""Prompt tokens after which a step takes no further prompt in, so that rows which decode do not wait long."""


@dataclass(eq=False, slots=True)
class _Active:
    """A request that was admitted, and what it has consumed."""

    request: InferenceRequest
    input: int
    open: int
    tells_input: bool
    output: int = 0
    events: list[Event] = field(default_factory=list[Event])
    error: Exception | None = None

    @property
    def usage(self) -> Usage:
        return Usage(input=self.input, output=self.output)


@dataclass(eq=False, slots=True)
class _Choice:
    """One answer that is being made: a row of the batch, or waiting for one.

    `most` is how many tokens it may have; `unsent` how many were made since the last delta; `last` is the token
    that the next forward is fed.
    """

    active: _Active
    index: int
    prompt: Prompt
    most: int
    drawer: Drawer
    text: Detokenizer
    stops: StopScanner
    ends: frozenset[int]
    made: int = 0
    unsent: int = 0
    last: int = 0
    ended: bool = False

    def accept(self, token: int) -> None:
        """Take the token that was drawn: count it, and give out what text it completes."""
        self.last = token
        self.made += 1
        self.unsent += 1
        self.active.output += 1
        self.drawer.took(token)
        at_end = token in self.ends
        text, stopped = self.stops.add("" if at_end else self.text.add(token))
        full = self.made >= self.most
        if (at_end or full) and not stopped:
            rest, stopped = self.stops.add(self.text.end())
            text += rest if stopped else rest + self.stops.end()
        self.ended = at_end or full or stopped
        if text or self.ended:
            self.active.events.append(TextDelta(text=text, index=self.index, tokens=self.unsent))
            self.unsent = 0
        if self.ended:
            reason: FinishReason = "stop" if at_end or stopped else "length"
            self.active.events.append(Finished(reason=reason, index=self.index))
            self.active.open -= 1


class TorchModel:
    """A causal language model under the host's step loop. See `StepModel`."""

    def __init__(
        self,
        batch: Batch,
        prompts: Prompts,
        info: ModelInfo,
        *,
        ends: frozenset[int],
        defaults: Defaults,
        context: int,
        max_requests: int,
        entropy: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> None:
        self.info = info
        self._batch = batch
        self._prompts = prompts
        self._ends = ends
        self._defaults = defaults
        self._context = context
        self._max_requests = max_requests
        self._entropy = entropy
        self._active: dict[str, _Active] = {}
        self._pending: list[_Choice] = []
        self._rows: list[_Choice] = []
        """The choice of each row of the batch, in its order."""

    @property
    def room(self) -> int:
        """See StepModel."""
        return self._max_requests - len(self._active)

    def admit(self, request: InferenceRequest) -> None:
        """See StepModel. Tokenises; the prompt runs in a later step."""
        payload = request.payload
        if not isinstance(payload, ChatPayload | CompletionPayload):
            raise InvalidRequest(f"this model does chat and completion, not {request.task}", path="task")
        if request.id in self._active:
            raise InvalidRequest(f"request {request.id} is being answered already", path="id")
        ignore_end = _ignore_end(request)
        rule = check(payload.sampling, self._defaults)
        if request.max_output is not None and request.max_output < 1:
            raise InvalidRequest(f"must be at least 1, not {request.max_output}", path="max_tokens")
        prompts = self._prompts.encode(payload)
        active = _Active(
            request,
            input=sum(len(prompt.tokens) for prompt in prompts),
            open=len(prompts) * payload.n,
            tells_input=request.stream,
        )
        seed = self._entropy() if rule.seed is None else rule.seed
        for at, prompt in enumerate(prompts):
            for index in range(at * payload.n, (at + 1) * payload.n):
                choice = self._choice(active, index, prompt, rule, seed)
                if ignore_end:
                    choice.ends = frozenset()
                self._pending.append(choice)
                if isinstance(payload, CompletionPayload) and payload.echo and prompt.text:
                    active.events.append(TextDelta(text=prompt.text, index=index, tokens=0))
        self._active[request.id] = active

    def step(self) -> Sequence[StepOutput]:
        """See StepModel: one token for each row that decodes, then prompts that there is room for."""
        if self._rows:
            self._decode()
        self._prefill()
        return [self._output(active) for active in list(self._active.values()) if active.events or active.error]

    def cancel(self, request_id: str) -> Usage | None:
        """See StepModel."""
        active = self._active.pop(request_id, None)
        if active is None:
            return None
        self._forget({active})
        return active.usage

    def close(self) -> None:
        """See StepModel."""
        self._active.clear()
        self._pending.clear()
        self._rows.clear()
        self._batch.keep([])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _choice(self, active: _Active, index: int, prompt: Prompt, rule: Rule, seed: int) -> _Choice:
        limits = (active.request.max_output, self.info.max_output_tokens, self._context - len(prompt.tokens))
        return _Choice(
            active=active,
            index=index,
            prompt=prompt,
            most=min(limit for limit in limits if limit is not None),
            drawer=Drawer.seeded(rule, seed, index),
            text=Detokenizer(self._prompts.decode, prompt.tokens),
            stops=StopScanner(rule.stop),
            ends=self._ends,
        )

    # -- the two halves of a step

    def _decode(self) -> None:
        try:
            logits = self._batch.decode([choice.last for choice in self._rows])
        except Exception:  # noqa: BLE001 - one row may be the cause: find out which, the others go on
            self._decode_apart()
            return
        self._accept(self._rows, draw(logits, [choice.drawer for choice in self._rows]))
        self._drop_ended()

    def _decode_apart(self) -> None:
        """The same step row by row, after the batched forward failed: only rows that fail by themselves end."""
        singles = [self._batch.alone(row) for row in range(len(self._rows))]
        rows, self._rows = self._rows, []
        scores: list[torch.Tensor] = []
        self._batch.keep([])
        for choice, single in zip(rows, singles, strict=True):
            try:
                scores.append(single.decode([choice.last]))
            except Exception as error:  # noqa: BLE001 - it is handed to whoever asked
                self._fail(choice.active, error)
                continue
            self._batch.absorb(single)
            self._rows.append(choice)
        if self._rows:
            self._accept(self._rows, draw(torch.cat(scores), [choice.drawer for choice in self._rows]))
        self._drop_ended()

    def _prefill(self) -> None:
        budget = PREFILL_TOKENS
        while self._pending and budget > 0 and (free := self._max_requests - len(self._rows)) > 0:
            group = self._next_group(free)
            prompt, active = group[0].prompt, group[0].active
            budget -= len(prompt.tokens)
            try:
                rows, logits = self._batch.prefill(prompt.tokens)
                self._accept(group, draw(logits.expand(len(group), -1), [choice.drawer for choice in group]))
                staying = [choice for choice in group if not choice.ended]
                if staying and active.error is None:
                    rows.repeat(len(staying))
                    self._batch.absorb(rows)
                    self._rows += staying
            except Exception as error:  # noqa: BLE001 - one prompt's failure is its own
                self._fail(active, error)
                self._drop_ended()

    def _next_group(self, most: int) -> list[_Choice]:
        """Waiting choices of one prompt, of whoever has the fewest rows and tokens so far.

        So a request with many choices does not shut others out.
        """
        rows = Counter(choice.active for choice in self._rows)
        first = min(self._pending, key=lambda choice: (rows[choice.active], choice.active.output))
        group = [choice for choice in self._pending if choice.prompt is first.prompt][:most]
        taken = set(group)
        self._pending = [choice for choice in self._pending if choice not in taken]
        return group

    # -- what became of a token

    def _accept(self, choices: Iterable[_Choice], tokens: Iterable[int | None]) -> None:
        for choice, token in zip(choices, tokens, strict=True):
            if choice.active.error is not None:
                continue
            if token is None:
                self._fail(choice.active, UpstreamFailed("the model's scores are not numbers", retryable=False))
                continue
            choice.accept(token)

    def _fail(self, active: _Active, error: Exception) -> None:
        if active.error is None:
            active.error = error

    def _drop_ended(self) -> None:
        """Free the rows of choices that are complete and of requests that failed."""
        staying = [
            row for row, choice in enumerate(self._rows) if not choice.ended and choice.active.error is None
        ]
        self._batch.keep(staying)
        self._rows = [self._rows[row] for row in staying]

    def _forget(self, gone: set[_Active]) -> None:
        self._pending = [choice for choice in self._pending if choice.active not in gone]
        staying = [row for row, choice in enumerate(self._rows) if choice.active not in gone]
        self._batch.keep(staying)
        self._rows = [self._rows[row] for row in staying]

    def _output(self, active: _Active) -> StepOutput:
        request_id = active.request.id
        events, active.events = active.events, []
        if events and active.tells_input:
            events.insert(0, UsageReport(usage=Usage(input=active.input)))
            active.tells_input = False
        done = active.open == 0
        if done and active.error is None:
            events.append(UsageReport(usage=active.usage))
        if done or active.error is not None:
            del self._active[request_id]
            self._forget({active})
        return StepOutput(request_id=request_id, events=tuple(events), done=done, error=active.error)


def _ignore_end(request: InferenceRequest) -> bool:
    """The one per-request option: go on after the model's end token, for measurements."""
    for name in request.options:
        if name != "ignore_eos":
            raise InvalidRequest("is not an option of backend torch; it has: ignore_eos", path=f"options.{name}")
    value = request.options.get("ignore_eos", False)
    if not isinstance(value, bool):
        raise InvalidRequest("must be true or false", path="options.ignore_eos")
    return value
