"""`headgate usage`, `audit`, `migrate`: what the ledger wrote down."""

from __future__ import annotations

import typer

from headgate_gateway.cli.options import Config, Json, fail, load_settings
from headgate_gateway.cli.output import print_json


def register(application: typer.Typer) -> None:
    """Add these commands."""
    application.command()(audit)


def audit(config: Config = None, json: Json = False) -> None:
    """Re-derive every balance from the records; exits 1 and names the first difference when one does not."""
    from headgate_gateway.ledger.audit import audit as audit_ledger

    layout = load_settings(config).layout
    if not layout.store.exists():
        fail(f"{layout.store} does not exist: nothing was ever recorded")
    report = audit_ledger(layout, full=True)
    if json:
        print_json({"ok": report.ok, "checked": report.checked, "first_difference": report.first_difference})
    elif report.ok:
        told = ", ".join(f"{count} {what}" for what, count in report.checked.items())
        typer.echo(f"everything re-derives: {told}")
    if not report.ok:
        fail(f"the first difference: {report.first_difference}")
