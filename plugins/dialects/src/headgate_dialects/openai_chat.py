"""OpenAI chat completions, both directions, whole and streamed.

Known fields of the wrong type are errors with their path; unknown fields are let through and survive in
`InferenceRequest.native`. May import the plugin API.
"""

from headgate_dialects.openai_chat_answers import StreamDecoder, StreamEncoder, decode_answer, encode_answer
from headgate_dialects.openai_chat_requests import NAME, ChatRequest, LimitField, decode_request, encode_request

__all__ = [
    "NAME",
    "ChatRequest",
    "LimitField",
    "StreamDecoder",
    "StreamEncoder",
    "decode_answer",
    "decode_request",
    "encode_answer",
    "encode_request",
]
