"""The one use case: admit, dispatch, relay, settle; one path for streams and whole answers.

May import the clients of ledger and engine and the rooms above; never their processes.
"""
