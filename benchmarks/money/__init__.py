"""The parts of `benchmarks.money_errors`: a mixed load, gateways to point it at, three views to compare."""
