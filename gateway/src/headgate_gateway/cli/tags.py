"""`headgate tags`: erasing what clients said about their users."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, Url, fail, load_settings
from headgate_gateway.cli.output import print_json
from headgate_gateway.cli.times import moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from headgate_gateway.admin.erasing import EraseTags, TagsErased


def register(application: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(help="What clients say about their users.", no_args_is_help=True)
    group.command("erase")(erase)
    application.add_typer(group, name="tags")


def erase(
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE...", help="Of requests that have all of these.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only of this project's requests: an id or a name.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Only of those admitted before: ISO 8601, UTC unless it says otherwise.")
    ] = None,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Erase the tags of requests for good: of those that have certain tags, of old ones, or both.

    What they cost stays. The audit log keeps how many they were, and the names of the tags, never their values.
    """
    from headgate_gateway.admin.erasing import EraseTags

    asked = EraseTags(tags=_pairs(tags or []), project=project, before=moment(before, "--before"))
    if not asked.tags and asked.before is None:
        fail("expected NAME=VALUE, or --before for the tags of all older requests", BAD_INPUT)
    done = _until_all(_here(config) if url is None else _there(url), asked)
    if json:
        print_json({"erased": done.erased, "copies": list(done.copies)})
        return
    typer.echo(f"erased the tags of {done.erased} request{'s' * (done.erased != 1)}")
    for copy in done.copies:
        typer.echo(f"{copy}, a copy from before a migration, still has them: delete it when you can", err=True)


def _pairs(stated: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in stated:
        name, equals, value = one.partition("=")
        if not name or not equals or name in found:
            fail(f'expected NAME=VALUE, each name once, not "{one}"', BAD_INPUT)
        found[name] = value
    return found


def _until_all(once: Callable[[EraseTags], TagsErased], asked: EraseTags) -> TagsErased:
    import msgspec

    erased = 0
    while True:
        done = once(asked)
        erased += done.erased
        if done.after is None:
            return msgspec.structs.replace(done, erased=erased)
        asked = msgspec.structs.replace(asked, after=done.after)


def _there(url: str) -> Callable[[EraseTags], TagsErased]:
    import msgspec

    from headgate_gateway.admin.erasing import TagsErased
    from headgate_gateway.cli.remote_administration import RemoteAdmin

    admin = RemoteAdmin(url)
    return lambda asked: msgspec.convert(admin.erase_tags(msgspec.to_builtins(asked)), TagsErased)


def _here(config: Path | None) -> Callable[[EraseTags], TagsErased]:
    from headgate_gateway.admin.erasing import erase as steps
    from headgate_gateway.admin.erasing import take_steps
    from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable, usage_reader
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.settings import SecretError

    settings = load_settings(config)

    def once(asked: EraseTags) -> TagsErased:
        try:
            with administration(config) as admin:
                taken = steps(usage_reader(settings), asked, settings)
                return take_steps(taken, lambda command: admin.carry_out(command, object))
        except (QueryTooSlow, UsageUnavailable, SecretError) as error:
            fail(str(error))

    return once
