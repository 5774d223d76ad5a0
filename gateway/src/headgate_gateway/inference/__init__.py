"""The one use case: admit, dispatch, relay, settle; one path for streams and whole answers.

May import the clients of ledger and engine and the rooms above; never their processes.
"""

from headgate_gateway.inference.errors import InferenceError, NotAllowed, Rejected, UnknownModel, WrongTask
from headgate_gateway.inference.exchange import Exchange
from headgate_gateway.inference.service import Call, Inference

__all__ = [
    "Call",
    "Exchange",
    "Inference",
    "InferenceError",
    "NotAllowed",
    "Rejected",
    "UnknownModel",
    "WrongTask",
]
