"""A conformance suite that any backend plugin can run."""
