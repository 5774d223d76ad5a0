"""The pytest plugin: fixtures of the conformance suite. May import the rest of the suite and pytest.

It is loaded by every pytest run of an environment that has the plugin API, so it imports next to nothing until
a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from headgate_plugin_api import LoadedModel, LoadProgress
    from headgate_plugin_api.conformance.case import BackendCase
    from headgate_plugin_api.conformance.consumer import ConsumerCase
    from headgate_plugin_api.conformance.remote import RemoteCase

pytest.register_assert_rewrite(
    "headgate_plugin_api.conformance.answers",
    "headgate_plugin_api.conformance.consumer",
    "headgate_plugin_api.conformance.drive",
    "headgate_plugin_api.conformance.engine",
    "headgate_plugin_api.conformance.remote",
)


@pytest.fixture(scope="class")
def backend_case() -> BackendCase:
    """What the suite runs on: override it, in the class or beside it, with a scope of at least `class`."""
    pytest.fail("define a fixture `backend_case` that returns a headgate_plugin_api.conformance.BackendCase")


@pytest.fixture(scope="class")
def remote_case() -> RemoteCase:
    """The same for remote backends."""
    pytest.fail("define a fixture `remote_case` that returns a headgate_plugin_api.conformance.RemoteCase")


@pytest.fixture
def consumer_case() -> ConsumerCase:
    """The same for plugins that take usage records; a fresh one for each test."""
    pytest.fail("define a fixture `consumer_case` that returns a headgate_plugin_api.conformance.ConsumerCase")


@pytest.fixture(scope="class")
def load_progress() -> list[LoadProgress]:
    """What the model reported while it was loaded."""
    return []


@pytest.fixture(scope="class")
def loaded_model(backend_case: BackendCase, load_progress: list[LoadProgress]) -> Iterator[LoadedModel]:
    """The case's model, loaded once for the class and closed after it."""
    model = backend_case.backend.load(backend_case.spec, load_progress.append)
    yield model
    model.close()
