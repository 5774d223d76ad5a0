"""Starts, watches and restarts the other processes.

Imports neither torch nor litestar, so that it stays small and hard to kill.
"""
