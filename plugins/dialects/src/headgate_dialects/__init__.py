"""Codecs between wire dialects and Headgate's canonical types."""
