"""What the load asks: operations drawn from a seed, and what each may cost. Imports nothing of a gateway."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.truthful_upstream import WORDS, Behaviour, Order

INPUT_NANO: Final = 370
OUTPUT_NANO: Final = 1130
"""What a token costs, in nano-units. Both models cost the same."""

FAR, NEAR = "far", "near"
"""The model that the truthful upstream runs, and the one that the gateway runs itself, if it can: it echoes."""

LIES: Final[frozenset[Behaviour]] = frozenset({"inflate", "deflate", "negative"})

_BEHAVIOURS: Final[dict[Behaviour, int]] = {
    "honest": 58, "slow": 12, "silent": 6, "inflate": 5, "deflate": 3, "negative": 2, "stall": 2, "reset": 7,
    "error": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """What one client wants, once.

    Attributes:
        name: Unique in a run; gateways keep it with their records.
        account: Which of the load's keys pays.
        model: FAR or NEAR.
        prompt: Input tokens: words of three letters.
        order: What the upstream is to do; of NEAR only the name counts.
        stream: How it is asked.
        limit: The output limit that is asked for; None leaves it to the gateway.
        leaves_after: Words after which the client hangs up; None stays. A whole answer's client leaves at once
            after so many milliseconds.
        claimed: Whether tries carry one idempotency key.
        twice: Whether it is sent a second time at once (with the key), or again after success.
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

    @property
    def words(self) -> int:
        """Words of a complete answer that nothing cut short."""
        return self.prompt if self.model == NEAR else self.order.words

    def body(self) -> dict[str, Any]:
        """The request."""
        offset = sum(self.name.encode())
        text = " ".join(WORDS[(offset + number) % len(WORDS)] for number in range(self.prompt))
        document: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "stream": self.stream,
            "user": str(self.order),
        }
        if self.stream:
            document["stream_options"] = {"include_usage": True}
        if self.limit is not None:
            document["max_tokens"] = self.limit
        return document

    @property
    def affordable_at(self) -> int:
        """An amount that is surely enough to be admitted: all bytes as tokens, and templates besides."""
        output = self.limit if self.limit is not None else 4096
        return cost(len(str(self.body())) + 1024, output)


def cost(prompt: int, output: int) -> int:
    """Nano-units of so many tokens."""
    return prompt * INPUT_NANO + output * OUTPUT_NANO


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
        model = FAR if draw.random() < 0.75 else NEAR
        behaviour = draw.choices(list(_BEHAVIOURS), list(_BEHAVIOURS.values()))[0]
        # A few are long: their holds grow step by step, or are cut where the budget ends.
        words = draw.randint(1, 60)
        if draw.random() < 0.03 and behaviour not in ("slow", "stall"):
            words = draw.randint(1100, 2500)
        stream = draw.random() < 0.5
        leaves = draw.random() < 0.12
        claimed = draw.random() < 0.6
        is_tight = draw.random() < 0.125
        yield Operation(
            name=name,
            account=draw.randrange(accounts - tight, accounts) if is_tight else draw.randrange(accounts - tight),
            model=model,
            prompt=draw.randint(1, 40),
            order=Order(name, words, behaviour),
            stream=stream,
            limit=None if draw.random() < 0.3 else words + draw.randint(0, 40) + 40,
            leaves_after=draw.randint(1, 30) if leaves else None,
            claimed=claimed,
            twice=claimed and draw.random() < 0.2,
        )
