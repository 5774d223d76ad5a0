"""The registry of configured models, and the client of their engines.

May import domain, ipc and the plugin API; never an engine's inside.
"""
