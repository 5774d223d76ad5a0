"""PyTorch text generation for Headgate."""
