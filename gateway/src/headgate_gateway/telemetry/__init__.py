"""Logs, metrics, traces.

May import the standard library and its own libraries.
"""
