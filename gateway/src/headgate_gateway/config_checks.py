"""What must be true of a whole config, beyond each field by itself.

`consistency` needs nothing but the settings; `against_plugins` also asks the backends that the config names,
`unreadable_secrets` the places where credentials lie.
May import settings and plugins.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from headgate_plugin_api import Backend, LoadFailed, read_manifest

from headgate_gateway.plugins import PluginError, load_backends, load_prices, nearest_field
from headgate_gateway.settings import (
    POSTGRESQL,
    REFERENCES,
    Model,
    SecretError,
    Settings,
    Target,
    database,
    resolve_secret,
)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a config: the field's path, and what was expected there."""

    path: str
    message: str


def consistency(settings: Settings) -> list[Problem]:
    """Problems that the config shows by itself."""
    return [*_server(settings), *_names(settings), *_shapes(settings)]


def _server(settings: Settings) -> Iterator[Problem]:
    server = settings.server
    if (server.tls_cert is None) != (server.tls_key is None):
        given, missing = ("tls_cert", "tls_key") if server.tls_cert else ("tls_key", "tls_cert")
        yield Problem(f"server.{given}", f"needs {missing} beside it")
    if "admin_host" in server.model_fields_set and server.admin_port is None:
        yield Problem("server.admin_host", "needs admin_port beside it")
    if server.admin_port and server.admin_port == server.port:
        yield Problem("server.admin_port", "expected another port than server.port")
    for index, proxy in enumerate(server.trusted_proxies):
        if proxy != "*" and not _is_network(proxy):
            yield Problem(
                f"server.trusted_proxies[{index}]",
                f'expected an address, a network such as 10.0.0.0/8, or "*", not "{proxy}"',
            )
    for index, origin in enumerate(server.cors_origins):
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            yield Problem(
                f"server.cors_origins[{index}]",
                f'expected an origin such as https://app.example.org, or "*", not "{origin}"',
            )
    if settings.grpc is not None:
        yield Problem("grpc", "is not supported by this version")
    if settings.store.shared and not settings.store.url.startswith((*POSTGRESQL, *REFERENCES)):
        expected = (
            '"sqlite", "postgresql://user@host/database", or env:NAME or file:PATH that holds such an address'
        )
        yield Problem("store.url", f"expected {expected}")


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+|null")


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _names(settings: Settings) -> Iterator[Problem]:
    """Ids and aliases name one model each."""
    owner: dict[str, str] = {}
    for index, model in enumerate(settings.models):
        for path, name in [
            (f"models[{index}].id", model.id),
            *((f"models[{index}].aliases[{n}]", alias) for n, alias in enumerate(model.aliases)),
        ]:
            if name in owner:
                yield Problem(path, f'"{name}" is taken by {owner[name]}')
            else:
                owner[name] = path


def _shapes(settings: Settings) -> Iterator[Problem]:
    """A model is local, or has targets."""
    for index, model in enumerate(settings.models):
        path = f"models[{index}]"
        if model.backend is None and not model.targets:
            yield Problem(path, "needs `backend` (a local model) or `[[models.targets]]`")
        if model.backend is not None and model.targets:
            yield Problem(
                f"{path}.targets",
                "stands beside `backend`; give the local model an id of its own and target that",
            )
        if model.backend is None:
            for name in ("source", "options", "python"):
                if getattr(model, name):
                    yield Problem(f"{path}.{name}", "is for local models, which have `backend`")
        for name in ("warmup", "idle_unload_s"):
            if getattr(model, name) != Model.model_fields[name].default:
                yield Problem(f"{path}.{name}", "is not supported by this version")
        if model.targets and not any(target.weight for target in model.targets):
            yield Problem(f"{path}.targets", "expected at least one target with a weight above 0")


def _store(settings: Settings) -> Iterator[Problem]:
    try:
        database(settings)
    except SecretError as error:
        yield Problem("store.url", str(error).removeprefix("store.url: "))


def against_plugins(settings: Settings) -> list[Problem]:
    """Problems that only what is installed can tell. Imports the backends' (light) plugin modules."""
    named = {backend: path for path, backend in reversed(list(_backends_named(settings)))}
    backends: dict[str, Backend] = {}
    problems = [] if settings.store.url.startswith(REFERENCES) else [*_store(settings)]
    for name, path in named.items():
        try:
            backends |= load_backends([name])
        except PluginError as error:
            problems.append(Problem(path, str(error)))
    for index, name in enumerate(settings.plugins.enable):
        try:
            load_prices([name])
        except PluginError as error:
            problems.append(Problem(f"plugins.enable[{index}]", str(error)))
    for index, model in enumerate(settings.models):
        path = f"models[{index}]"
        if (backend := backends.get(model.backend or "")) is not None:
            problems += _local(model, backend, path)
        for number, target in enumerate(model.targets):
            if (backend := backends.get(target.backend)) is not None:
                problems += _target(settings, model, target, backend, f"{path}.targets[{number}]")
        problems += _embed_agreement(settings, model, backends, path)
    return problems


def unreadable_secrets(settings: Settings) -> list[Problem]:
    """The pepper, credentials of targets and of the store, and the certificate, that cannot be read here and now.

    Not part of `headgate check`, which also runs where the secrets are not. Runs the `cmd:` ones.
    """
    problems = [*_pepper(settings), *_store(settings), *_certificate(settings)]
    for index, model in enumerate(settings.models):
        for number, target in enumerate(model.targets):
            try:
                if target.api_key is not None:
                    resolve_secret(target.api_key)
            except SecretError as error:
                problems.append(Problem(f"models[{index}].targets[{number}].api_key", str(error)))
    return problems


def _pepper(settings: Settings) -> Iterator[Problem]:
    """A file is made at the first start."""
    if (reference := settings.server.pepper) is not None and not reference.startswith("file:"):
        try:
            resolve_secret(reference)
        except SecretError as error:
            yield Problem("server.pepper", str(error))


def _certificate(settings: Settings) -> Iterator[Problem]:
    server = settings.server
    if server.tls_cert is None or server.tls_key is None:
        return
    for name, file in (("tls_cert", server.tls_cert), ("tls_key", server.tls_key)):
        try:
            file.read_bytes()
        except OSError as error:
            yield Problem(f"server.{name}", str(error))
            return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.tls_cert, server.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        yield Problem("server.tls_cert", f"is not a PEM certificate that tls_key belongs to: {error}")


def _backends_named(settings: Settings) -> Iterator[tuple[str, str]]:
    for index, model in enumerate(settings.models):
        if model.backend is not None:
            yield f"models[{index}].backend", model.backend
        for number, target in enumerate(model.targets):
            yield f"models[{index}].targets[{number}].backend", target.backend


def _local(model: Model, backend: Backend, path: str) -> Iterator[Problem]:
    if backend.kind != "engine":
        yield Problem(f"{path}.backend", f"{backend.name} is remote: put it under [[models.targets]]")
        return
    yield from _task(model, backend, f"{path}.task")
    yield from _options(model.options, backend, f"{path}.options")
    if model.source is not None and "://" not in model.source and not Path(model.source).exists():
        yield Problem(
            f"{path}.source", f"{model.source} does not exist; `headgate models import` makes model folders"
        )
    if model.python is not None and not model.python.is_file():
        yield Problem(f"{path}.python", f"{model.python} is not a Python interpreter")


def _target(settings: Settings, model: Model, target: Target, backend: Backend, path: str) -> Iterator[Problem]:
    if backend.kind == "engine":
        locals_ = {other.id: other for other in settings.models if other.backend is not None}
        if target.model is None or (other := locals_.get(target.model)) is None:
            yield Problem(
                f"{path}.model",
                f"expected the id of a local model of this config ({', '.join(locals_) or 'none yet'})",
            )
        elif other.backend != target.backend:
            yield Problem(f"{path}.backend", f"{other.id} runs on {other.backend}")
        elif other.task != model.task:
            yield Problem(f"{path}.model", f"{other.id} does {other.task}, {model.id} does {model.task}")
        return
    yield from _task(model, backend, f"{path}.backend")
    yield from _options(target.options, backend, f"{path}.options")
    if target.base_url is None:
        yield Problem(f"{path}.base_url", "is missing: expected the provider's address, such as https://host/v1")
    elif not target.base_url.startswith(("http://", "https://")) or not _host(target.base_url):
        yield Problem(f"{path}.base_url", "expected an address such as https://host/v1")


def _host(url: str) -> str | None:
    """The host of an address; None where there is none or it is not one."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return None if any(character.isspace() for character in url) else parts.hostname


def _task(model: Model, backend: Backend, path: str) -> Iterator[Problem]:
    if model.task not in backend.tasks:
        yield Problem(path, f"{backend.name} does not do {model.task}, only {', '.join(sorted(backend.tasks))}")


_MSGSPEC_PATH = re.compile(r"^(?P<message>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)


def _options(options: dict[str, object], backend: Backend, path: str) -> Iterator[Problem]:
    """Check the backend's own options against the type that it declares."""
    known = [field.encode_name for field in msgspec.structs.fields(backend.options_type)]
    unknown = [name for name in options if name not in known]
    for name in unknown:
        yield Problem(f"{path}.{name}", nearest_field(name, known))
    try:
        msgspec.convert({name: value for name, value in options.items() if name in known}, backend.options_type)
    except msgspec.ValidationError as error:
        found = _MSGSPEC_PATH.match(str(error))
        inner = (found["path"] or "") if found else ""
        yield Problem(path + inner, (found["message"] if found else str(error)).replace("`", ""))


def _embed_agreement(
    settings: Settings, model: Model, backends: dict[str, Backend], path: str
) -> Iterator[Problem]:
    """Targets of an embed model must make the same numbers: a fallback to another would ruin an index."""
    if model.task != "embed" or len(model.targets) < 2:
        return
    sources = {other.id: other.source for other in settings.models}
    seen: dict[str, str] = {}
    for number, target in enumerate(model.targets):
        backend = backends.get(target.backend)
        if backend is None:
            return
        if target.fingerprint is not None:
            identity = target.fingerprint
        elif backend.kind == "engine":
            identity = _fingerprint(sources.get(target.model or "")) or f"local model {target.model}"
        else:
            identity = f"{target.model} of {target.backend}"
        seen[identity] = f"targets[{number}]"
    if len(seen) > 1:
        told = ", ".join(f"{where} makes {identity[:24]}" for identity, where in seen.items())
        yield Problem(
            f"{path}.targets",
            f"embeddings of different models cannot stand in for each other: {told}. Where they are the same, "
            "say so with the same `fingerprint` on each target",
        )


def _fingerprint(source: str | None) -> str | None:
    if source is None or "://" in source:
        return None
    try:
        return read_manifest(Path(source), verify=False).fingerprint or None
    except LoadFailed:
        return None
