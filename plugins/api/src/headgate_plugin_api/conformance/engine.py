"""The suite for engine backends: subclass the form of the model as `TestSomething` and define `backend_case`.

May import the rest of the suite, the plugin API and pytest.
"""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from headgate_plugin_api.backend import BatchModel, LoadedModel, LoadProgress, ModelInfo, StepModel
from headgate_plugin_api.conformance.answers import check_answer, choices_of, same_answer, text_of, usage_of
from headgate_plugin_api.conformance.case import BackendCase
from headgate_plugin_api.conformance.drive import answers, finish_steps, run_together
from headgate_plugin_api.errors import InvalidRequest
from headgate_plugin_api.events import Finished
from headgate_plugin_api.requests import InferenceRequest, Task
from headgate_plugin_api.usage import DIMENSIONS


class EngineConformance:
    """Facts of the contract that every engine backend keeps, whatever the form of its model."""

    # -- the backend, before anything is loaded

    def test_the_backend_describes_itself(self, backend_case: BackendCase) -> None:
        """Name, kind and tasks are what the config and the engine go by."""
        backend, spec = backend_case.backend, backend_case.spec
        assert backend.kind == "engine"
        assert backend.name == spec.backend
        assert backend.tasks <= set(get_args(Task))
        assert spec.task in backend.tasks

    def test_unknown_options_are_refused(self, backend_case: BackendCase) -> None:
        """`headgate check` names a misspelt option, because the options type forbids unknown ones."""
        options_type = backend_case.backend.options_type
        msgspec.convert(backend_case.spec.options, options_type)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(backend_case.spec.options | {"no_such_option": 1}, options_type)

    # -- loading

    def test_the_model_says_what_it_is(self, loaded_model: LoadedModel) -> None:
        """Info is there once loaded, and a model is of exactly one form."""
        assert isinstance(loaded_model.info, ModelInfo)
        assert isinstance(loaded_model, BatchModel) != isinstance(loaded_model, StepModel)
        msgspec.msgpack.decode(msgspec.msgpack.encode(loaded_model.info), type=ModelInfo)

    def test_progress_goes_from_0_to_1(
        self, loaded_model: LoadedModel, load_progress: list[LoadProgress]
    ) -> None:
        """Reports never go back."""
        assert loaded_model is not None
        fractions = [progress.fraction for progress in load_progress]
        assert all(0 <= fraction <= 1 for fraction in fractions)
        assert fractions == sorted(fractions)

    # -- answers

    def test_every_answer_is_complete(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """Results or choices as asked for, usage once and last."""
        for request in backend_case.requests:
            check_answer(request, answers(loaded_model, [request])[request.id])

    def test_company_changes_no_answer(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """An answer is the same alone and together with others, whatever their order."""
        alone = {request.id: answers(loaded_model, [request])[request.id] for request in backend_case.requests}
        for company in (backend_case.requests, backend_case.requests[::-1]):
            together = answers(loaded_model, company)
            for request in company:
                assert same_answer(together[request.id], alone[request.id], backend_case.tolerance), request.id

    def test_the_bound_is_never_too_low(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """A hold is taken from it, before the model was ever ready and after."""
        backend, spec = backend_case.backend, backend_case.spec
        for request in backend_case.requests:
            used = usage_of(answers(loaded_model, [request])[request.id])
            for info in (None, loaded_model.info):
                bound = backend.bound(request, spec, info)
                if backend_case.exact_bound:
                    assert bound == used
                if bound is None:
                    continue
                for name in DIMENSIONS:
                    if name != "gpu_ms":
                        assert getattr(bound, name) >= getattr(used, name), f"{request.id}: {name}"

    def test_max_output_is_kept(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """No choice makes more, and one that would have says so: `length`."""
        for request in backend_case.requests:
            if not choices_of(request):
                continue
            whole = answers(loaded_model, [request])[request.id]
            for most in (1, 2):
                short = msgspec.structs.replace(request, max_output=most)
                events = answers(loaded_model, [short])[request.id]
                check_answer(short, events)
                assert usage_of(events).completion_tokens <= most * choices_of(request)
                for event in events:
                    if isinstance(event, Finished) and text_of(events, event.index) != text_of(
                        whole, event.index
                    ):
                        assert event.reason == "length"

    # -- refusals

    def test_a_bad_request_is_refused_by_name(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """`InvalidRequest` with the path of the field, before anything runs."""
        for bad in backend_case.bad:
            with pytest.raises(InvalidRequest) as caught:
                _take_in(loaded_model, bad.request)
            assert caught.value.path is not None, f"{bad.request.id}: the refusal names no path"
            assert bad.path is None or caught.value.path == bad.path

    def test_a_bad_request_harms_no_neighbour(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """Whoever runs beside it gets the answer that it gets alone."""
        first, *others = backend_case.requests
        alone = answers(loaded_model, [first])[first.id]
        for bad in backend_case.bad:
            with pytest.raises(InvalidRequest):
                _take_in(loaded_model, bad.request)
            together = answers(loaded_model, [first, *others])
            assert same_answer(together[first.id], alone, backend_case.tolerance)


class BatchConformance(EngineConformance):
    """The same, and what a `BatchModel` keeps besides."""

    def test_results_are_in_the_order_of_the_items(
        self, backend_case: BackendCase, loaded_model: LoadedModel
    ) -> None:
        """`run_batch` answers each item in its place: reversed items give reversed results."""
        assert isinstance(loaded_model, BatchModel)
        items = [item for request in backend_case.requests for item in loaded_model.prepare(request)]
        there, back = run_together(loaded_model, items), run_together(loaded_model, items[::-1])
        for request in backend_case.requests:
            mine = [item for item in items if item.request.id == request.id]
            one, other = (
                loaded_model.finish(request, mine, [results[request.id, item.index] for item in mine])
                for results in (there, back)
            )
            assert same_answer(one, other, backend_case.tolerance)

    def test_items_say_what_they_cost(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """The batcher budgets by `tokens` and groups by `shape`."""
        assert isinstance(loaded_model, BatchModel)
        for request in backend_case.requests:
            items = loaded_model.prepare(request)
            assert [item.index for item in items] == list(range(len(items)))
            assert all(item.request is request and item.tokens >= 1 for item in items)
            hash(tuple(item.shape for item in items))


class StepConformance(EngineConformance):
    """The same, and what a `StepModel` keeps besides."""

    def test_cancelling_frees_the_place(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """A cancelled request is never heard of again, its room comes back, and others go on."""
        assert isinstance(loaded_model, StepModel)
        dropped, kept = backend_case.requests[:2]
        alone = answers(loaded_model, [kept])[kept.id]
        room = loaded_model.room
        assert room > 0
        loaded_model.admit(dropped)
        loaded_model.admit(kept)
        assert loaded_model.room < room
        loaded_model.cancel(dropped.id)
        assert same_answer(finish_steps(loaded_model, {kept.id})[kept.id], alone, backend_case.tolerance)
        assert loaded_model.room == room

    def test_cancelling_tells_what_was_used(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """Never more than the whole answer uses; nothing for a request that nobody knows."""
        assert isinstance(loaded_model, StepModel)
        request = backend_case.requests[0]
        whole = usage_of(answers(loaded_model, [request])[request.id])
        loaded_model.admit(request)
        used = loaded_model.cancel(request.id)
        if used is not None:
            assert used.prompt_tokens <= whole.prompt_tokens
            assert used.completion_tokens <= whole.completion_tokens
        assert loaded_model.cancel(request.id) is None
        assert loaded_model.cancel("nobody") is None

    def test_a_refused_request_takes_no_room(self, backend_case: BackendCase, loaded_model: LoadedModel) -> None:
        """Nothing is kept of it."""
        assert isinstance(loaded_model, StepModel)
        room = loaded_model.room
        for bad in backend_case.bad:
            with pytest.raises(InvalidRequest):
                loaded_model.admit(bad.request)
        assert loaded_model.room == room


def _take_in(model: LoadedModel, request: InferenceRequest) -> None:
    if isinstance(model, StepModel):
        model.admit(request)
    else:
        model.prepare(request)
