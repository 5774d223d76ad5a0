"""A model's targets: balancing, fallback, circuit breaker.

May import domain and the plugin API.
"""
