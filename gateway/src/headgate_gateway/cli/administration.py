"""Admin commands from the command line: through the running ledger, or through one started for the moment.

May import settings, the ledger's embedded client, supervisor.data_folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from headgate_gateway.cli.options import BAD_INPUT, FAILED, fail, load_settings

if TYPE_CHECKING:
    from headgate_gateway.domain.commands import Command, Rejected, Result
    from headgate_gateway.settings import Settings

T = TypeVar("T")
Carry = Callable[["Command"], "Result"]


class Administration:
    """What a command asks the ledger through, for as long as it runs."""

    def __init__(self, carry: Carry) -> None:
        self._carry = carry

    def carry_out(self, command: Command, expected: type[T]) -> T:
        """Carry out one command and return its answer; ends the program when it is refused."""
        from headgate_gateway.domain.commands import Rejected

        result = self._carry(command)
        if isinstance(result, Rejected):
            refuse(result)
        assert isinstance(result, expected), result
        return result


def refuse(rejected: Rejected) -> NoReturn:
    """End the program: with 2 for a refusal that the user can mend, 1 when the ledger cannot do it now."""
    where = f"{rejected.field}: " if rejected.field else ""
    fail(f"{where}{rejected.message}", FAILED if rejected.code == "unavailable" else BAD_INPUT)


@contextmanager
def administration(config: Path | None, url: str | None = None) -> Generator[Administration]:
    """Administer the gateway of a config, or (`url`) one somewhere else."""
    if url is not None:
        from headgate_gateway.cli.remote_administration import RemoteAdmin

        yield Administration(RemoteAdmin(url).carry)
        return
    settings = load_settings(config)
    from headgate_gateway.ledger.line import LedgerUnavailable
    from headgate_gateway.ledger.store import StoreFailed
    from headgate_gateway.settings import SecretError

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            command = runner.run(connect(settings, stack))
        except (OSError, LedgerUnavailable, SecretError, StoreFailed) as error:
            from headgate_gateway.supervisor.data_folder import served_out_of_reach

            fail(f"the ledger cannot be reached: {error}{served_out_of_reach(settings.layout)}")
        from headgate_gateway.admin.naming import unknown_model

        names = settings.model_names
        try:
            yield Administration(
                lambda asked: unknown_model(asked, names) or runner.run(_awaited(command(asked)))
            )
        except LedgerUnavailable as error:
            fail(f"the ledger was reached, but: {error}")
        finally:
            runner.run(stack.aclose())


async def connect(settings: Settings, stack: AsyncExitStack) -> Callable[[Command], Awaitable[Result]]:
    """A connection to the running ledger or to one for the moment; makes secrets first, as `serve` would."""
    from headgate_gateway.ledger.embedded import momentary_ledger
    from headgate_gateway.supervisor.data_folder import DataFolderError, ensure_secrets

    try:
        ensure_secrets(settings)
    except DataFolderError as error:
        fail(str(error))
    admin = await stack.enter_async_context(momentary_ledger(settings, settings.layout))
    command: Callable[[Command], Awaitable[Result]] = admin.command
    return command


async def _awaited(result: Awaitable[T]) -> T:
    return await result


async def create_first_key(settings: Settings, project: str) -> str:
    """A key for somebody who has none: what `serve` without a config prints."""
    from headgate_gateway.domain.commands import CreateKey, KeyCreated

    async with AsyncExitStack() as stack:
        command = await connect(settings, stack)
        result = await command(CreateKey(project=project, name="first serve"))
    assert isinstance(result, KeyCreated), result
    return result.key
