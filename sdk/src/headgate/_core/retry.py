"""When to try again and how long to wait: pure functions of the failure; the shells only do the waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headgate.errors import Failure, HeadgateError

if TYPE_CHECKING:
    from tenacity import RetryCallState


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a call is retried.

    Attributes:
        max_retries: Tries after the first.
        base: Seconds that the first backoff may take at most; doubled for each further one.
        cap: Seconds that any backoff may take at most.
        longest_pace: A server that asks for a longer pause than this is not waited for.
    """

    max_retries: int = 2
    base: float = 0.5
    cap: float = 8.0
    longest_pace: float = 120.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.max_retries < 0 or self.base < 0 or self.cap < 0 or self.longest_pace < 0:
            raise ValueError("a retry policy has no negative numbers")

    def verdict(self, error: BaseException, *, replays: bool) -> bool:
        """Whether the failure allows another try.

        Args:
            error: What the attempt raised.
            replays: Whether a second try cannot do the work twice: the method is safe, or the server is known to
                replay answers by idempotency key.
        """
        if not isinstance(error, HeadgateError) or not error.retryable:
            return False
        if error.failure is Failure.OUTCOME_UNKNOWN and error.should_retry is None:
            return replays
        return True

    def wait(self, attempt: int, error: BaseException, roll: float) -> float:
        """Seconds of pause after the `attempt`-th try (1 for the first).

        Args:
            attempt: How many tries were made.
            error: What the last one raised; a server's pace wins over the backoff.
            roll: A random number in [0, 1).
        """
        if isinstance(error, HeadgateError) and error.retry_after is not None:
            return error.retry_after
        return min(self.cap, self.base * 2.0 ** min(attempt - 1, 62)) * roll

    def stop(self, attempt: int, wait: float, remaining: float) -> bool:
        """Whether to give up now instead of waiting.

        A pause that would cross the deadline is not taken: the failure is more useful now.
        """
        return attempt > self.max_retries or wait > self.longest_pace or wait >= remaining


@dataclass(slots=True)
class Rules:
    """The policy bound to one call, as the three functions that tenacity asks for.

    Attributes:
        policy: The policy.
        remaining: Seconds left of the call's deadline, asked for each time.
        roll: A source of numbers in [0, 1).
        replays: See `RetryPolicy.verdict`; asked for each time, since an answer may tell.
    """

    policy: RetryPolicy
    remaining: Callable[[], float]
    roll: Callable[[], float]
    replays: Callable[[], bool]

    def retry(self, state: RetryCallState) -> bool:
        """Whether the failure allows another try."""
        error = _failure(state)
        return error is not None and self.policy.verdict(error, replays=self.replays())

    def wait(self, state: RetryCallState) -> float:
        """How long to pause."""
        error = _failure(state)
        return 0.0 if error is None else self.policy.wait(state.attempt_number, error, self.roll())

    def stop(self, state: RetryCallState) -> bool:
        """Whether the pause is not worth taking."""
        return self.policy.stop(state.attempt_number, state.upcoming_sleep, self.remaining())


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
