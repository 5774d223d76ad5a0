"""`headgate usage` and `audit`: what the ledger wrote down.

Both only read: here, while it serves or offline, or (`--url`) elsewhere.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headgate_gateway.cli.options import BAD_INPUT, Config, Json, Url, fail, load_settings
from headgate_gateway.cli.output import print_json, print_table
from headgate_gateway.cli.times import exactly, moment, when

if TYPE_CHECKING:
    from headgate_plugin_api import JsonValue, UsageRecord

    from headgate_gateway.admin.usage import Bucket, Total, UsageReader
    from headgate_gateway.cli.remote_records import RemoteUsage
    from headgate_gateway.ledger.audit import AuditReport

GROUPS: Final = ("model", "key", "project", "organization", "backend", "outcome")
BUCKETS: Final[tuple[Bucket, ...]] = ("1m", "1h", "1d")


def register(application: typer.Typer) -> None:
    """Add these commands."""
    application.command()(usage)
    application.command()(log)
    application.command()(audit)


def usage(
    by: Annotated[
        str, typer.Option(help=f"{', '.join(GROUPS)} or tag:NAME; several with commas between.")
    ] = "model",
    only: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=VALUE", help=f"Only these: {', '.join(GROUPS)}.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="ISO 8601, UTC unless it says otherwise.")] = None,
    until: Annotated[str | None, typer.Option(help="The same; not included.")] = None,
    bucket: Annotated[str | None, typer.Option(help="Also by time: 1m, 1h or 1d.")] = None,
    request: Annotated[str | None, typer.Option(help="One request's record instead: req_...")] = None,
    records: Annotated[int, typer.Option(help="This many single records instead.", min=0, max=1000)] = 0,
    after: Annotated[int, typer.Option(help="With --records: those numbered above this.", min=0)] = 0,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show usage and cost: sums by group, single records, or one."""
    from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable, check_groups

    groups = by.split(",")
    try:
        check_groups(groups)
    except ValueError as error:
        fail(f'--by: {str(error).partition(": ")[2]}, not "{by}"', BAD_INPUT)
    filters = _filters(only or [])
    step: Bucket | None = next((known for known in BUCKETS if known == bucket), None)
    if step != bucket:
        fail(f'--bucket: expected one of {", ".join(BUCKETS)}, not "{bucket}"', BAD_INPUT)
    reader = reader_of(config, url)
    try:
        if request is not None:
            _show_record(reader, request, json=json)
            return
        begin, end = moment(since, "--since") or 0, moment(until, "--until")
        if records:
            document = _show_records(reader, after, records, filters, json=json)
        else:
            totals = asyncio.run(reader.totals(groups, begin, end, step, filters))
            document = _show_totals(groups, totals, json=json)
        archived = asyncio.run(reader.archived_until())
        if json:
            print_json({**document, "archived_until": None if archived is None else exactly(archived)})
        elif archived is not None and begin <= archived:
            typer.echo(f"what was finished by {exactly(archived)} is in the archive, and not in this", err=True)
    except (QueryTooSlow, UsageUnavailable) as error:
        fail(str(error))


def _filters(stated: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in stated:
        name, _, value = one.partition("=")
        if name not in GROUPS or not value:
            fail(f'--only: expected FIELD=VALUE with one of {", ".join(GROUPS)}, not "{one}"', BAD_INPUT)
        found[name] = value
    return found


def reader_of(config: Path | None, url: str | None) -> UsageReader | RemoteUsage:
    """What reads the records: here, from the store; elsewhere, over HTTP."""
    if url is not None:
        from headgate_gateway.cli.remote_administration import RemoteAdmin
        from headgate_gateway.cli.remote_records import RemoteUsage

        return RemoteUsage(RemoteAdmin(url))
    from headgate_gateway.admin.usage import usage_reader
    from headgate_gateway.settings import SecretError

    try:
        return usage_reader(load_settings(config))
    except SecretError as error:
        fail(str(error))


def _show_totals(groups: list[str], totals: tuple[Total, ...], *, json: bool) -> dict[str, Any]:
    from headgate_gateway.domain.money import format_amount

    cost = format_amount(sum(total.cost for total in totals))
    if json:
        rows = [
            {
                **dict(zip(groups, total.group, strict=True)),
                "bucket_at": when(total.bucket_at),
                "records": total.records,
                "usage": _usage_document(total.usage),
                "cost": format_amount(total.cost),
                "overrun": format_amount(total.overrun),
            }
            for total in totals
        ]
        return {"by": ",".join(groups), "totals": rows, "records": sum(t.records for t in totals), "cost": cost}
    lines: list[tuple[object, ...]] = [
        (
            *(*total.group, when(total.bucket_at), total.records, total.usage.prompt_tokens),
            *(total.usage.completion_tokens, format_amount(total.cost)),
        )
        for total in totals
    ]
    if lines:
        blank = [""] * len(groups)
        lines.append(("all", *blank, sum(total.records for total in totals), "", "", cost))
    print_table(
        (*groups, "from", "requests", "tokens in", "tokens out", "cost"), lines, empty="nothing was recorded"
    )
    return {}


def _show_records(
    reader: UsageReader | RemoteUsage, after: int, limit: int, filters: dict[str, str], *, json: bool
) -> dict[str, Any]:
    page = asyncio.run(reader.records(after, limit, filters))
    documents = [_record_document(record) for record in page.records]
    if json:
        return {"records": documents, "after": page.after}
    fields = ("seq", "request_id", "model", "key_id", "outcome", "cost", "finished_at")
    lines = [[document[field] for field in fields] for document in documents]
    print_table(fields, lines, empty="nothing was recorded")
    if page.after is not None:
        typer.echo(f"more: --after {page.after}", err=True)
    return {}


def _show_record(reader: UsageReader | RemoteUsage, request_id: str, *, json: bool) -> None:
    record = asyncio.run(reader.record(request_id))
    if record is None:
        archived = asyncio.run(reader.archived_until())
        other = "" if archived is None else f", or was finished by {exactly(archived)} and is in the archive"
        fail(f"no record of {request_id}: it is open still, or never was{other}")
    document = _record_document(record)
    if json:
        print_json(document)
    else:
        print_table(("field", "value"), document.items(), empty="")


def _record_document(record: UsageRecord) -> dict[str, Any]:
    import msgspec

    from headgate_gateway.domain.money import format_amount

    document: dict[str, Any] = msgspec.to_builtins(record)
    for field in ("held", "cost", "overrun"):
        document[field] = format_amount(getattr(record, field))
    for field in ("admitted_at", "first_byte_at", "finished_at"):
        document[field] = when(getattr(record, field))
    return document


def _usage_document(usage: Any) -> dict[str, int]:
    import msgspec

    return {name: value for name, value in msgspec.structs.asdict(usage).items() if value}


def log(
    after: Annotated[int, typer.Option(help="Entries numbered above this.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 100,
    config: Config = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show what operators, configs and the ledger itself did: the audit log, oldest first."""
    from headgate_gateway.admin.usage import QueryTooSlow, UsageUnavailable

    try:
        page = asyncio.run(reader_of(config, url).log(after, limit))
    except (QueryTooSlow, UsageUnavailable) as error:
        fail(str(error))
    rows = [(e.id, when(e.at), e.actor, e.action, e.target, e.detail) for e in page.entries]
    fields = ("id", "at", "actor", "action", "target", "detail")
    if json:
        print_json({"entries": [dict(zip(fields, row, strict=True)) for row in rows], "after": page.after})
        return
    print_table(fields, [(*facts, _in_words(detail)) for *facts, detail in rows], empty="nothing was done yet")
    if page.after is not None:
        typer.echo(f"more: --after {page.after}", err=True)


def _in_words(detail: dict[str, JsonValue]) -> str:
    """What an entry says beside itself, without what it leaves unsaid."""
    said = {name: " ".join(map(str, it)) if isinstance(it, list) else it for name, it in detail.items()}
    return ", ".join(f"{name} {it}" for name, it in said.items() if it not in (None, ""))


def audit(
    config: Config = None,
    url: Url = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Begin at the beginning or the end of the archive, not at the last seal."),
    ] = False,
    archive: Annotated[
        Path | None,
        typer.Option(help="With --full: where the archived files lie; begin with them.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Re-derive every balance from the records; exits 1 and names the first difference when one does not.

    Begins at the last daily seal that verifies, where there is one.
    """
    if archive is not None and (url is not None or not full):
        fail("--archive: goes with --full and without --url, for the files lie here", BAD_INPUT)
    report = _audited_here(config, archive, full=full) if url is None else _audited_there(url, full=full)
    if json:
        print_json(
            {
                "ok": report.ok,
                "began": report.began,
                "checked": report.checked,
                "first_difference": report.first_difference,
            }
        )
    elif report.ok:
        told = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in report.checked.items())
        typer.echo(f"everything re-derives since {report.began}: {told}")
    if not report.ok:
        fail(f"the first difference: {report.first_difference}")


def _audited_there(url: str, *, full: bool) -> AuditReport:
    from headgate_gateway.cli.remote_administration import RemoteAdmin
    from headgate_gateway.cli.remote_records import remote_audit

    return remote_audit(RemoteAdmin(url), full=full)


def _audited_here(config: Path | None, archive: Path | None, *, full: bool) -> AuditReport:
    from headgate_gateway.admin.audit import audit as audit_store
    from headgate_gateway.settings import SecretError

    settings = load_settings(config)
    try:
        return audit_store(settings, full=full, archived=archive)
    except SecretError as error:
        fail(str(error))
