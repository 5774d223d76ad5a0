"""A model's targets: balancing, fallback, circuit breaker.

May import domain and the plugin API.
"""

from headgate_gateway.routing.breaker import Breaker, BreakerState
from headgate_gateway.routing.router import Lease, Routable, Router, RouteStep

__all__ = ["Breaker", "BreakerState", "Lease", "Routable", "RouteStep", "Router"]
