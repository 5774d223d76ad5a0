"""`headgate prices apply`: the config's prices become those of the store. May import settings."""

from __future__ import annotations

from headgate_gateway.cli.options import Config, Json, load_settings
from headgate_gateway.cli.output import print_json, print_table


def apply_prices(config: Config = None, json: Json = False) -> None:
    """Make the config's prices those of the store; a node whose config differs does not start any more."""
    from headgate_gateway.cli.administration import administration
    from headgate_gateway.domain.commands import PricesSet, SyncPrices
    from headgate_gateway.domain.pricing import quoted_rates
    from headgate_gateway.ledger.process import config_prices

    settings = load_settings(config)
    with administration(config) as admin:
        changed = admin.carry_out(SyncPrices(models=config_prices(settings)), PricesSet).versions
    fields = ("model", "rates", "id")
    prices = [(version.model, quoted_rates(version.rates), version.id) for version in changed]
    if json:
        print_json({"prices": [dict(zip(fields, price, strict=True)) for price in prices]})
        return
    rows = [
        (model, ", ".join(f"{rate} {amount}" for rate, amount in rates.items()), id_)
        for model, rates, id_ in prices
    ]
    print_table(fields, rows, empty="the store has these prices already")
