"""All that knows Litestar: controllers, authentication, problems, headers, SSE.

May import inference, admin and the dialects.
"""
