"""What the load asks, who pays for it and what it costs: all drawn from a seed. Imports nothing of a gateway."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from benchmarks.truthful_upstream import WORDS, Behaviour, Order, answer_words

Task = Literal["chat", "embed", "infer"]

FAR, NEAR = "far", "near"
"""The model that the truthful upstream runs, and the one that the gateway runs itself, if it can: it echoes."""

DRAINED, WAIVED, SECOND = "far-drained", "far-waived", "far-second"
"""FAR again: who leaves pays for all of it, or for nothing; and one whose first target is dead."""

VECTORS, FAR_VECTORS, TENSORS = "vectors", "far-vectors", "tensors"
"""Embeddings of the gateway's own and of the upstream, and tensors that come back as they are."""

TASKS: Final[dict[str, Task]] = {VECTORS: "embed", FAR_VECTORS: "embed", TENSORS: "infer"}
"""Of models that do not chat."""


TOKENS_PER_BYTE: Final = 11
"""The most that a byte of text can become where nobody knows the tokenizer: NFKC turns 3 bytes into 33."""


@dataclass(frozen=True)
class Price:
    """What a model costs, in the decimals that people state, counted here once more from their meaning.

    Attributes:
        input: Per million input tokens.
        output: Per million output tokens.
        request: Per request.
        minimum: What a request costs at least.
        context: A threshold of input tokens, and the two rates of all of a request that is above it.
        graduated: A threshold, and the two rates of the tokens of each side that are beyond it.
    """

    input: str = "0"
    output: str = "0"
    request: str = "0"
    minimum: str = "0"
    context: tuple[int, str, str] | None = None
    graduated: tuple[int, str, str] | None = None

    def due(self, prompt: int, output: int) -> int:
        """Nano-units of so many tokens, rounded half-even once."""
        rates = self.input, self.output
        if self.context is not None and prompt > self.context[0]:
            rates = self.context[1:]
        beyond, further = (0, 0), rates
        if self.graduated is not None:
            above, further = self.graduated[0], self.graduated[1:]
            beyond = max(0, prompt - above), max(0, output - above)
        total = sum(
            Fraction(rate) * (count - over) + Fraction(dearer) * over
            for rate, dearer, count, over in zip(rates, further, (prompt, output), beyond, strict=True)
        )
        nano = round(total * 1000 + Fraction(self.request) * 10**9)
        return max(nano, int(Fraction(self.minimum) * 10**9))

    def most(self, prompt: int, output: int) -> int:
        """No so many tokens cost more than this, whatever their tier."""
        both = [self.input, self.output], *([*tier[1:]] for tier in (self.context, self.graduated) if tier)
        dearest_in, dearest_out = (max((pair[side] for pair in both), key=Fraction) for side in (0, 1))
        dearest = Price(dearest_in, dearest_out, self.request, self.minimum)
        return dearest.due(prompt, output) + 1

    def quote(self) -> dict[str, Any]:
        """As config and admin API take it."""
        quoted: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("input", "output", "request", "minimum")
            if getattr(self, name) != "0"
        }
        for kind in ("context", "graduated"):
            if (tier := getattr(self, kind)) is not None:
                quoted[kind] = [dict(zip(("above", "input", "output"), tier, strict=True))]
        return quoted


PRICES: Final[dict[str, Price]] = {
    FAR: Price("0.37", "1.13"),
    NEAR: Price("0.37", "1.13"),
    DRAINED: Price("0.37", "1.13", context=(20, "0.740000003", "2.26")),
    WAIVED: Price("0.37", "1.13", graduated=(15, "0.170000001", "0.71")),
    SECOND: Price("0.37", "1.13", minimum="0.00003"),
    VECTORS: Price("0.370000001"),
    FAR_VECTORS: Price("0.37", minimum="0.000002"),
    TENSORS: Price(request="0.000005001"),
}
"""What models cost when a run begins."""


@dataclass(frozen=True)
class Payer:
    """An account of the load: a key.

    Attributes:
        project: Its project.
        budget: A budget of its own, `AMOUNT/WINDOW`.
        rpm: Requests a minute.
        tpm: Tokens a minute.
        concurrency: Requests in flight.
        rotated: Whether the key is rotated on the way.
    """

    project: str
    budget: str | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    rotated: bool = False


PAYERS: Final = (
    *(Payer(f"ample{number % 2}", budget="1000/month") for number in range(3)),
    Payer("rotated", rotated=True),
    Payer("limited", rpm=600, tpm=600_000, concurrency=5),
    Payer("prepaid"),
    Payer("tight-key", budget="0.004/total"),
    *(Payer("tight-project"),) * 2,
    Payer("tight-credit"),
)
TIGHT: Final = sum(payer.project.startswith("tight") for payer in PAYERS)
"""How many of them, the last ones, run out of money on the way."""

BUDGETS: Final = {"tight-project": ("0.004", "total"), "rotated": ("1000", "month"), "default": ("5000", "month")}
"""Of projects and the organization."""

GRANTS: Final = {"prepaid": (("0.02", 1), ("1000", 2)), "tight-credit": (("0.0021", 2), ("0.0017", 1))}
"""Prepaid credit of projects: amounts and priorities."""

LIES: Final[frozenset[Behaviour]] = frozenset({"inflate", "deflate", "negative"})

_BEHAVIOURS: Final[dict[Behaviour, int]] = {
    "honest": 58, "slow": 12, "silent": 6, "inflate": 5, "deflate": 3, "negative": 2, "stall": 2, "reset": 7,
    "error": 5,
}  # fmt: skip


_SHARES: Final = {FAR: 42, NEAR: 18, DRAINED: 7, WAIVED: 7, SECOND: 7, VECTORS: 8, FAR_VECTORS: 5, TENSORS: 6}


@dataclass(frozen=True)
class Operation:
    """What one client wants, once.

    Attributes:
        name: Unique in a run; gateways keep it with their records.
        account: Which of the load's keys pays.
        model: One of `PRICES`.
        prompt: Input tokens: words of three letters. Numbers, of tensors.
        order: What the upstream is to do; of the gateway's own models only the name counts.
        stream: How it is asked.
        limit: The output limit that is asked for; None leaves it to the gateway.
        leaves_after: Words after which the client hangs up; None stays. A whole answer's client leaves at once
            after so many milliseconds.
        claimed: Whether tries carry one idempotency key.
        twice: Whether it is sent a second time at once (with the key), or again after success.
        resumed: Whether its stream goes on over another connection when one breaks. Then its client, where it
            leaves, comes back.
    """

    name: str
    account: int
    model: str
    prompt: int
    order: Order
    stream: bool
    limit: int | None
    leaves_after: int | None
    claimed: bool
    twice: bool
    resumed: bool = False

    @property
    def task(self) -> Task:
        """What kind of request it is."""
        return TASKS.get(self.model, "chat")

    @property
    def far(self) -> bool:
        """Whether the truthful upstream answers."""
        return self.model.startswith(FAR)

    @property
    def path(self) -> str:
        """Where it is asked."""
        paths = {
            "chat": "/v1/chat/completions",
            "embed": "/v1/embeddings",
            "infer": f"/v2/models/{TENSORS}/infer",
        }
        return paths[self.task]

    @property
    def billed_input(self) -> int:
        """Input tokens that are due."""
        return 0 if self.task == "infer" else self.prompt

    def billed_output(self, arrived: int) -> int:
        """Output tokens that are due for so much of an answer."""
        return arrived if self.task == "chat" else 0

    def answer(self, count: int) -> list[str]:
        """As much of the answer as arrived: words; or all places of embeddings, all numbers, or nothing."""
        if self.task != "chat":
            size = len(self._texts()) if self.task == "embed" else self.prompt
            return [str(place) for place in range(size)] if count else []
        words = answer_words(self.name, count) if self.far else self._asked()
        return [word.strip() for word in words[:count]]

    def _asked(self) -> list[str]:
        offset = sum(self.name.encode())
        return [WORDS[(offset + number) % len(WORDS)] for number in range(self.prompt)]

    def _texts(self) -> list[str]:
        words = self._asked()
        return [" ".join([*words[start : start + 8], ""]) for start in range(0, len(words), 8)]

    def body(self) -> dict[str, Any]:
        """The request."""
        if self.task == "infer":
            tensor = {
                "name": "numbers",
                "shape": [self.prompt],
                "datatype": "INT64",
                "data": [*range(self.prompt)],
            }
            return {"inputs": [tensor]}
        document: dict[str, Any] = {"model": self.model, "user": str(self.order)}
        if self.task == "embed":
            return {**document, "input": self._texts()}
        document |= {"messages": [{"role": "user", "content": " ".join(self._asked())}], "stream": self.stream}
        if self.stream:
            document["stream_options"] = {"include_usage": True}
        if self.limit is not None:
            document["max_tokens"] = self.limit
        return document

    def affordable_at(self, price: Price) -> int:
        """An amount that is surely enough to be admitted: every byte as so many tokens, and templates besides."""
        output = self.limit if self.limit is not None else 4096
        tokens = len(str(self.body())) * (TOKENS_PER_BYTE if self.task == "embed" else 1) + 1024
        return price.most(tokens, self.billed_output(output))


def cost(prompt: int, output: int) -> int:
    """Nano-units of so many tokens of FAR, as a run begins."""
    return PRICES[FAR].due(prompt, output)


def repriced(draw: random.Random) -> tuple[str, Price]:
    """A model and what it shall cost from now on: other rates, in the same tiers."""
    model = draw.choice([*PRICES])
    old = PRICES[model]
    rate = f"0.{draw.randrange(1, 900_000_000):09d}", f"{draw.randrange(2)}.{draw.randrange(10**9):09d}"
    if TASKS.get(model) == "infer":
        return model, Price(request=f"0.00000{draw.randrange(1, 10**4):04d}")
    output = rate[1] if model not in TASKS else "0"
    return model, Price(rate[0], output, "0", old.minimum, old.context, old.graduated)


def operations(seed: int, accounts: int, tight: int) -> Iterator[Operation]:
    """Operations without end, the same for the same seed.

    Args:
        seed: Of everything that is drawn.
        accounts: How many keys there are.
        tight: How many of them, the last ones, have budgets that run out; an eighth of the load goes there.
    """
    draw = random.Random(seed)
    number = 0
    while True:
        number += 1
        name = f"s{seed}n{number}"
        model = draw.choices([*_SHARES], [*_SHARES.values()])[0]
        chats = model not in TASKS
        behaviour = draw.choices(list(_BEHAVIOURS), list(_BEHAVIOURS.values()))[0]
        # A few are long: their holds grow step by step, or are cut where the budget ends.
        words = draw.randint(1, 60)
        if draw.random() < 0.03 and behaviour not in ("slow", "stall"):
            words = draw.randint(1100, 2500)
        stream = chats and draw.random() < 0.5
        leaves = draw.random() < 0.12
        claimed = draw.random() < 0.6
        resumed = claimed and stream and draw.random() < 0.4
        is_tight = draw.random() < 0.125 and tight > 0
        yield Operation(
            name=name,
            account=draw.randrange(accounts - tight, accounts) if is_tight else draw.randrange(accounts - tight),
            model=model,
            prompt=draw.randint(1, 40),
            order=Order(name, words if chats else 0, behaviour),
            stream=stream,
            limit=None if draw.random() < 0.3 else words + draw.randint(0, 40) + 40,
            leaves_after=draw.randint(1, 30) if leaves else None,
            claimed=claimed,
            twice=claimed and not resumed and draw.random() < 0.2,
            resumed=resumed,
        )
