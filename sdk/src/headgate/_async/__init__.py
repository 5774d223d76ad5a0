"""The async shell: written by hand; `_sync` is generated from it by sdk/scripts/unasync.py."""
