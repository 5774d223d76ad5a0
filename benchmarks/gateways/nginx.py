"""nginx as the provider, with one fixed OpenAI answer, and as the proxy that does nothing but pass on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

ANSWER = json.dumps(
    {
        "id": "chatcmpl-fixed",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "fixed",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The canal is open and the gate stands at two."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 11, "total_tokens": 35},
    }
)

_COMMON = """
daemon off;
master_process off;
pid {folder}/{name}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-fastcgi;
  uwsgi_temp_path {folder}/{name}-uwsgi;
  scgi_temp_path {folder}/{name}-scgi;
  {body}
}}
"""
_UPSTREAM = """
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{answer}'; }}
  }}
"""
_PROXY = """
  upstream provider {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
"""


def start_upstream(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Answer every request with `ANSWER`."""
    return _start(folder, "upstream", _UPSTREAM.format(port=port, answer=ANSWER))


def start_proxy(folder: Path, port: int, upstream: int) -> subprocess.Popen[bytes]:
    """Pass every request on, over kept connections."""
    return _start(folder, "proxy", _PROXY.format(port=port, upstream=upstream))


def _start(folder: Path, name: str, body: str) -> subprocess.Popen[bytes]:
    config = folder / f"{name}.conf"
    config.write_text(_COMMON.format(folder=folder, name=name, body=body))
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    assert program is not None
    return subprocess.Popen([program, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
