"""Benchmarks: `python -m benchmarks.NAME [--json]`. Each prints a table, and one JSON object last with `--json`."""
