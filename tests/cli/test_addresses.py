"""`headgate serve` with HTTPS, and with an address of its own for the admin API."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.certificates import make_certificate

CONFIG = """
[server]
admin_port = 0
{more}
[[models]]
id = "echo"
task = "chat"
backend = "echo"
price = {{ input = "1", output = "1" }}
"""
TLS = 'tls_cert = "cert.pem"\ntls_key = "key.pem"'


def test_https_and_an_admin_address(tmp_path: Path, serve: Any, headgate: Callable[..., str]) -> None:
    make_certificate(tmp_path, name="IP:127.0.0.1")
    (tmp_path / "headgate.toml").write_text(CONFIG.format(more=TLS))
    gateway = serve(tmp_path).wait()
    admin = re.search(r"admin api +(\S+)", gateway.out)[1]  # type: ignore[index]
    assert (gateway.url[:8], admin[:8]) == ("https://", "https://")
    environment = {
        "HEADGATE_ADMIN_KEY": (tmp_path / ".headgate" / "admin.key").read_text().strip(),
        "SSL_CERT_FILE": str(tmp_path / "cert.pem"),
    }
    made = json.loads(headgate(tmp_path, "keys", "create", "-p", "p", "--json", "--url", admin, **environment))
    refused = headgate(tmp_path, "keys", "list", "--url", gateway.url, code=2, **environment)
    assert "server.admin_port" in refused
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    with httpx.Client(verify=trusting, headers={"x-api-key": made["key"]}) as client:
        body = {"model": "echo", "messages": [{"role": "user", "content": "one two"}]}
        for stream in (False, True):
            answer = client.post(f"{gateway.url}/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == 200, answer.text
            assert "0.000004" in answer.text
        elsewhere = client.get(f"{gateway.url}//admin/v1/keys")
        assert (elsewhere.status_code, elsewhere.json()["code"]) == (404, "not_found")
        assert client.get(f"{admin}/admin/v1/keys").status_code == 403, "a client's key is no admin key there"
    with pytest.raises(httpx.HTTPError):
        httpx.get(gateway.url.replace("https", "http") + "/health/live")
    assert gateway.stop() == 0


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem"])
def test_a_certificate_that_cannot_be_read(tmp_path: Path, headgate: Callable[..., str], missing: str) -> None:
    make_certificate(tmp_path, name="IP:127.0.0.1")
    (tmp_path / missing).unlink()
    (tmp_path / "headgate.toml").write_text(CONFIG.format(more=TLS))
    told = headgate(tmp_path, "serve", code=2)
    assert f"server.tls_{missing[:-4]}: " in told
    assert "No such file" in told


def test_a_key_of_another_certificate(tmp_path: Path, headgate: Callable[..., str]) -> None:
    make_certificate(tmp_path, name="IP:127.0.0.1")
    key = (tmp_path / "key.pem").read_text()
    make_certificate(tmp_path, name="IP:127.0.0.1")
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "headgate.toml").write_text(CONFIG.format(more=TLS))
    assert "server.tls_cert: is not a PEM certificate that tls_key belongs to" in headgate(
        tmp_path, "serve", code=2
    )
