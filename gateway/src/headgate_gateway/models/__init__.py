"""The registry of configured models, and the client of their engines.

May import domain, ipc and the plugin API; never an engine's inside.
"""

from headgate_gateway.models.engine_client import ClientState, EngineClient
from headgate_gateway.models.errors import MisconfiguredModel
from headgate_gateway.models.registry import ModelRegistry, ServedModel
from headgate_gateway.models.specs import engine_spec
from headgate_gateway.models.targets import Target

__all__ = [
    "ClientState",
    "EngineClient",
    "MisconfiguredModel",
    "ModelRegistry",
    "ServedModel",
    "Target",
    "engine_spec",
]
