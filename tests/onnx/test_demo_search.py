"""The demo asks this repository's docs three questions; a page that grows must not hide another from it."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from headgate_plugin_api import BatchModel

from tests.onnx.conftest import ROOT, embed

MARGIN = 0.05


def test_each_question_has_one_page_clearly_on_top(minilm: BatchModel, minilm_folder: Path) -> None:
    found = util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert found is not None
    assert found.loader is not None
    demo = util.module_from_spec(found)
    found.loader.exec_module(demo)
    chunks = demo.chunks_of_docs(minilm_folder)
    vectors, _ = embed(minilm, [text for _, text in chunks])
    for question, expected in demo.QUESTIONS.items():
        (asked,), _ = embed(minilm, [question])
        scores = vectors @ asked
        pages = [page for page, _ in chunks]
        best = {page: max(s for p, s in zip(pages, scores, strict=True) if p == page) for page in pages}
        others = max(score for page, score in best.items() if page != expected)
        assert best[expected] > others + MARGIN, (question, sorted(best, key=best.__getitem__)[-3:])
