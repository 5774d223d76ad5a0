"""The ways to a provider: TLS with a certificate that must be good, and the proxy that the environment names."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from headgate_gateway.upstream import HttpUpstream
from headgate_plugin_api import UpstreamFailed

from tests.certificates import make_certificate

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(autouse=True)
def no_proxy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


class Server:
    """Answers every request with `ANSWER`; notes the heads."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                self.heads.append(head.decode("latin-1"))
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


class Proxy(Server):
    """Connects where it is told; what it is asked for itself, it answers."""

    def __init__(self, status: bytes = b"200 OK") -> None:
        super().__init__()
        self._status = status
        self._pipes: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode("latin-1"))
        if not head.startswith(b"CONNECT"):
            writer.write(ANSWER)
            await reader.read()
            writer.close()
            return
        writer.write(b"HTTP/1.1 " + self._status + b"\r\n\r\n")
        if not self._status.startswith(b"200"):
            writer.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        back, forth = await asyncio.open_connection(host, int(port))
        for pair in ((reader, forth), (back, writer)):
            task = asyncio.create_task(self._pipe(*pair))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except OSError:
            pass
        writer.close()


@asynccontextmanager
async def listening(server: Server, certificate: tuple[Path, Path] | None = None) -> AsyncIterator[Server]:
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[1], certificate[0])
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()


async def ask(upstream: HttpUpstream, url: str) -> bytes:
    response = await upstream.send("POST", url, headers={}, body=b"{}", timeout_s=10)
    return await response.read(10)


async def test_tls_with_a_good_certificate(upstream, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with listening(Server(), certificate) as server:
        for _ in range(2):
            assert await ask(upstream, f"https://localhost:{server.port}/v1") == b"ok"
        assert server.connections == 1
        await upstream.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"], ids=["nobody vouches", "another name"])
async def test_tls_with_a_bad_certificate(upstream, certificate, monkeypatch, host):
    if host != "localhost":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with listening(Server(), certificate) as server:
        with pytest.raises(UpstreamFailed, match="no way to it") as caught:
            await ask(upstream, f"https://{host}:{server.port}/v1")
        assert "certificate" in caught.value.inner.lower()
        assert not server.heads


async def test_plain_requests_through_a_proxy(upstream, monkeypatch):
    async with listening(Proxy()) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:s%20cret@127.0.0.1:{proxy.port}")
        assert await ask(upstream, "http://provider.test:81/v1?a=b") == b"ok"
        await upstream.close()
    (head,) = proxy.heads
    assert head.startswith("POST http://provider.test:81/v1?a=b HTTP/1.1\r\nhost: provider.test:81\r\n")
    assert "proxy-authorization: Basic bWU6cyBjcmV0\r\n" in head


async def test_tls_through_a_proxy(upstream, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with listening(Server(), certificate) as server, listening(Proxy()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.port}")
        for _ in range(2):
            assert await ask(upstream, f"https://localhost:{server.port}/v1") == b"ok"
        assert [head.splitlines()[0] for head in proxy.heads] == [f"CONNECT localhost:{server.port} HTTP/1.1"]
        assert "proxy-authorization" not in server.heads[0]
        await upstream.close()


async def test_a_tunnel_belongs_to_one_request_however_the_proxy_frames_its_consent(
    upstream, certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    async with (
        listening(Server(), certificate) as server,
        listening(Proxy(b"200 OK\r\ncontent-length: 0")) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        url = f"https://localhost:{server.port}/v1"
        assert await ask(upstream, url) == b"ok"
        assert await asyncio.gather(ask(upstream, url), ask(upstream, url)) == [b"ok", b"ok"]
        assert all(head.startswith("CONNECT") for head in proxy.heads)
        await upstream.close()


async def test_a_proxy_that_refuses(upstream, monkeypatch):
    async with listening(Proxy(b"407 Who are you")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(UpstreamFailed, match="no way to it") as caught:
            await ask(upstream, "https://provider.test/v1")
        assert caught.value.inner == "https://provider.test: the proxy answered 407"


async def test_hosts_that_need_no_proxy(upstream, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    async with listening(Server()) as server:
        assert await ask(upstream, f"http://127.0.0.1:{server.port}/v1") == b"ok"
        await upstream.close()


async def test_credentials_of_an_address_are_sent_and_never_shown(upstream):
    async with listening(Server()) as server:
        assert await ask(upstream, f"http://me:secret@127.0.0.1:{server.port}") == b"ok"
        await upstream.close()
    assert "authorization: Basic bWU6c2VjcmV0\r\n" in server.heads[0]
    assert server.heads[0].startswith("POST / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "url", ["ftp://a/", "http://", "http://a b/", "http://a/b c", "http://a:99999999/", "http://[::1"]
)
async def test_addresses_that_are_none(upstream, url):
    with pytest.raises(UpstreamFailed, match="could not be built") as caught:
        await ask(upstream, url)
    assert not caught.value.retryable
