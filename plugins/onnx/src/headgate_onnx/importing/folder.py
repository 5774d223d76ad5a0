"""The model folder that an import leaves behind, and the fingerprint over what makes its numbers.

A folder is filled beside its place and moved there whole, so that a failed import leaves nothing and an
interrupted one nothing that loads. May import the plugin API.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from headgate_plugin_api import MANIFEST_NAME, LoadFailed, Manifest, sha256_of, write_manifest


@contextmanager
def new_folder(out: str) -> Generator[Path]:
    """A scratch folder that becomes `out` when the block ends well.

    Raises:
        LoadFailed: `out` holds something that is not an earlier import.
    """
    target = Path(out)
    if (
        target.exists()
        and (not target.is_dir() or any(target.iterdir()))
        and not (target / MANIFEST_NAME).is_file()
    ):
        raise LoadFailed(f"{target} exists and is no model folder; choose another --out or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file, write the manifest and return it as it was written."""
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    manifest = msgspec.structs.replace(manifest, files=files)
    write_manifest(folder, manifest)
    return manifest


def fingerprint(**facts: Any) -> str:
    """sha256 over facts in canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
