"""Benchmarks: `python -m benchmarks.NAME [--json]`. A table; one JSON object last with `--json`."""
