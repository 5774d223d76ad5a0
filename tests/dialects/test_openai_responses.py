"""OpenAI responses: what is read, what is refused, and answers as OpenAI's own types read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from headgate_dialects import openai_chat, openai_responses
from headgate_dialects.decoded import AnswerMeta
from headgate_plugin_api import (
    ChatPayload,
    Finished,
    ImagePart,
    InferenceRequest,
    InvalidRequest,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageReport,
)
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

META = AnswerMeta(id="req_00ab", model="m", created=1700000000, cost="0.5")
USAGE = Usage(input=3, cache_read=2, output=4, reasoning=1)
TALK = (
    TextDelta(text="hm", reasoning=True),
    TextDelta(text="Hello"),
    TextDelta(text=" you"),
    ToolCallDelta(call=0, id="call_a", name="look"),
    ToolCallDelta(call=1, id="call_b", name="see", arguments='{"x"'),
    ToolCallDelta(call=0, arguments="{}"),
    ToolCallDelta(call=1, arguments=":1}"),
    Finished(reason="tool_calls"),
)
EVENTS = TypeAdapter(ResponseStreamEvent)


def payload(**document: Any) -> ChatPayload:
    found = openai_responses.decode_request({"model": "m", **document}).payload
    assert isinstance(found, ChatPayload)
    return found


def streamed(events: Any) -> list[dict[str, Any]]:
    writer = openai_responses.StreamEncoder(META)
    frames = b"".join(map(writer.encode, events)) + writer.final(USAGE, "0.5")
    found = []
    for frame in frames.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        document = json.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        found.append(document)
    return found


def test_a_provider_of_chat_is_told_what_is_more_than_text() -> None:
    found = payload(input="hi", parallel_tool_calls=False, reasoning={"effort": "low", "summary": "auto"})
    request = InferenceRequest(id="req_1", model="m", payload=found, max_output=5)
    sent = openai_chat.encode_request(request, "far")
    assert (sent["parallel_tool_calls"], sent["reasoning_effort"]) == (False, "low")


def test_a_text_is_a_message() -> None:
    found = payload(input="hi", instructions="be kind", temperature=0.5)
    assert [(message.role, message.content) for message in found.messages] == [
        ("system", "be kind"),
        ("user", "hi"),
    ]
    assert found.sampling.temperature == 0.5


def test_items_are_turns() -> None:
    image = {"type": "input_image", "image_url": "https://x/y.png"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "look"}, image]},
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "well"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
    ]
    user, assistant, tool = payload(input=items).messages
    assert user.content == (TextPart("look"), ImagePart("https://x/y.png"))
    assert assistant.text == "well"
    assert assistant.tool_calls == (
        ToolCall(id="a", name="f", arguments="{}"), ToolCall(id="b", name="g", arguments="{}"),
    )  # fmt: skip
    assert (tool.role, tool.content, tool.tool_call_id) == ("tool", "1", "a")


def test_forms_and_tools_in_the_words_of_chat() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}]
    choice = {"type": "function", "name": "f"}
    found = payload(input="x", text={"format": form}, tools=tools, tool_choice=choice)
    assert found.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert found.tools[0].name == "f"
    assert found.tool_choice == {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "tools": [{"type": "web_search", "name": "w"}]}, "tools[0].type"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ],
)
def test_what_cannot_be_served_is_named(document: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        openai_responses.decode_request({"model": "m", **document})
    assert caught.value.path == path
    assert caught.value.message.count(path) == 1


def test_openai_reads_every_event_and_the_stream_ends_with_the_whole_answer() -> None:
    documents = streamed(TALK)
    for document in documents:
        EVENTS.validate_python(document)
    assert [document["sequence_number"] for document in documents] == list(range(len(documents)))
    assert [document["type"] for document in documents[:2]] == ["response.created", "response.in_progress"]
    last = documents[-1]
    assert last["type"] == "response.completed"
    whole = json.loads(openai_responses.encode_answer([*TALK, UsageReport(usage=USAGE)], META))
    assert last["response"] == whole
    assert Response.model_validate(whole).output_text == "Hello you"
    assert [item["type"] for item in whole["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert [item.get("arguments") for item in whole["output"]] == [None, None, "{}", '{"x":1}']
    assert [item.get("call_id") for item in whole["output"]] == [None, None, "call_a", "call_b"]
    assert whole["usage"]["input_tokens"] == 5
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
    assert whole["usage"]["cost"] == "0.5"


def test_every_item_is_opened_filled_and_closed() -> None:
    documents = streamed(TALK)
    for index, item in enumerate(documents[-1]["response"]["output"]):
        own = [document for document in documents if document.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[-1] == {**own[-1], "type": "response.output_item.done", "item": item}
        made = "".join(document["delta"] for document in own if document["type"].endswith(".delta"))
        assert made == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_a_cut_answer_is_incomplete() -> None:
    last = streamed([TextDelta(text="Hel"), Finished(reason="length")])[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_an_empty_answer_is_an_empty_message() -> None:
    last = streamed([Finished(reason="stop")])[-1]["response"]
    assert Response.model_validate(last).output_text == ""
    assert last["status"] == "completed"
