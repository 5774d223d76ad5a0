"""The process that hands usage records to the plugins that ask for them (`headgate_usage_recorded`).

The records themselves are the outbox: nothing is copied, a cursor for each consumer says how far it has come. May
import admin's usage queries, the ledger's client and lookout, plugins and telemetry.
"""
