"""Remote providers behind Headgate: any OpenAI-compatible server.

`plugin` is the entry point, `openai` the backend, `answers` what a provider's status means. Nothing here opens a
connection itself: the gateway lends an `Upstream`.
"""
