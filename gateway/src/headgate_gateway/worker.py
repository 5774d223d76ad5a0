"""A worker process: uvicorn around the app, and what binds it to ledger, engines and supervisor.

May import everything.
"""
