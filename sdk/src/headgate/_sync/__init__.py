"""The sync shell: generated from `_async` by sdk/scripts/unasync.py, apart from `colour`."""
