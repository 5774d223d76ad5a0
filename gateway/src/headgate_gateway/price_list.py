"""What models cost without anybody having said so in the ledger: the config's prices, else plugins' tables.

Composition: may import settings, plugins and domain.
"""

from __future__ import annotations

from headgate_gateway.domain.commands import SyncPrices
from headgate_gateway.domain.pricing import Quote
from headgate_gateway.plugins import load_prices
from headgate_gateway.settings import Model, Settings


def configured_prices(settings: Settings) -> SyncPrices:
    """The config's prices, as the ledger takes them.

    A model without one costs what a plugin's table says of its id, or else of what all its targets call it.
    Tables are asked of the plugins that the config names, by a backend or in `[plugins]`.

    Raises:
        PluginError: A plugin cannot be used, or its table has no price there.
    """
    models: dict[str, Quote | None] = {
        model.id: model.price.rates() if model.price else None for model in settings.models
    }
    defaults: set[str] = set()
    if None in models.values():
        listed = load_prices(settings.plugin_names)
        for model in settings.models:
            found = next((listed[name] for name in _names(model) if name in listed), None)
            if models[model.id] is None and found is not None:
                models[model.id] = found
                defaults.add(model.id)
    return SyncPrices(models=models, defaults=frozenset(defaults))


def _names(model: Model) -> list[str]:
    """What a table may call it: its id, and its name elsewhere, when it is one and the same everywhere."""
    elsewhere = {target.model for target in model.targets}
    return [model.id, *filter(None, elsewhere if len(elsewhere) == 1 else ())]
