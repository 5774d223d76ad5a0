"""The parts of `benchmarks.gateway`: the upstreams, the gateways that are compared, and the load on them."""
