"""The process that a local model runs in: ipc, micro-batcher, step loop."""
