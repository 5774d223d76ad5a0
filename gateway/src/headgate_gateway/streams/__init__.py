"""Resumable streams.

May import domain and the plugin API.
"""
