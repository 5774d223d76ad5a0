"""A certificate of our own for tests of TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificate(folder: Path, *, name: str = "DNS:localhost") -> tuple[Path, Path]:
    """`key.pem` and `cert.pem` in a folder, for a subject's alternative name."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = folder / "key.pem", folder / "cert.pem"
    words = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {cert}"
        f" -days 2 -subj /CN=localhost -addext subjectAltName={name} -addext basicConstraints=CA:FALSE"
    )
    subprocess.run(words.split(), check=True, capture_output=True)
    return key, cert
