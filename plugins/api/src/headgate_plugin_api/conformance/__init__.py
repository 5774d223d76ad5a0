"""A conformance suite that backend plugins and takers of usage records can run on themselves; needs pytest.

```python
from headgate_plugin_api.conformance import BackendCase, StepConformance

class TestEcho(StepConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def backend_case(cls) -> BackendCase:
        return BackendCase(backend=EchoBackend(), spec=ModelSpec(...), requests=(...), bad=(...))
```

The pytest plugin of the same distribution (entry point `headgate-conformance`) brings the fixtures. May import
the rest of the plugin API, and pytest.
"""

from headgate_plugin_api.conformance.answers import same_answer
from headgate_plugin_api.conformance.case import BackendCase, BadRequest
from headgate_plugin_api.conformance.consumer import ConsumerCase, ConsumerConformance
from headgate_plugin_api.conformance.engine import BatchConformance, EngineConformance, StepConformance
from headgate_plugin_api.conformance.remote import RemoteCase, RemoteConformance
from headgate_plugin_api.conformance.upstream import Reply, Sent

__all__ = [
    "BackendCase",
    "BadRequest",
    "BatchConformance",
    "ConsumerCase",
    "ConsumerConformance",
    "EngineConformance",
    "RemoteCase",
    "RemoteConformance",
    "Reply",
    "Sent",
    "StepConformance",
    "same_answer",
]
