"""Pure rules: accounts, keys, money, pricing, limits, holds, idempotency, catalog. No I/O, no clock.

May import the standard library, msgspec and the plugin API's types.
"""
