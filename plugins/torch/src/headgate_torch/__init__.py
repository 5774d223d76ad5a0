"""PyTorch text generation for Headgate: chat and completion with causal language models of transformers.

Importing the package or its `plugin` module is light; torch comes with `TorchBackend.load`, which only an engine
process calls. May import the plugin API, msgspec, torch, transformers, tokenizers; nothing else of ours.
"""
