"""The response cache.

May import domain and the plugin API.
"""
