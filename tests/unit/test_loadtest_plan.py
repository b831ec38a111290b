"""Plans, questions and corpora on disk: what was written is what is read, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtest import corpus, questions
from loadtest.arrivals import Phase, Process
from loadtest.plan import Plan, read_plan, without_text_calls, write_plan
from loadtest.questions import NoQuestionsError, Question
from loadtest.slo import Load
from loadtest.workload import Operation

ROW = np.array([0.6, -0.8], "<f4").tobytes()


def test_a_plan_survives_the_disk_and_plans_the_same_calls(tmp_path: Path) -> None:
    plan = Plan(
        mesh_file="/x/mesh.toml",
        load=Load(arrivals=Process.CONSTANT, mix={Operation.SEARCH: 1.0, Operation.UPSERT: 0.5}, seed=9),
        phases=(Phase(name="burst", duration_s=2, rate_per_s=50),),
        questions=(Question(text="Why – and how?"), Question(vector=ROW)),
    )
    write_plan(tmp_path, plan)
    again = read_plan(tmp_path)
    assert again == plan
    assert again.calls() == plan.calls()
    assert len(plan.calls()) == 100


def test_ask_needs_words() -> None:
    load = Load(mix={Operation.ASK: 0.1, Operation.SEARCH: 0.9})
    assert without_text_calls(load, [Question(text="why?")]) == ""
    assert "load.mix.ask" in without_text_calls(load, [Question(text="why?"), Question(vector=ROW)])
    assert without_text_calls(Load(), [Question(vector=ROW)]) == ""


def test_questions_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("What is a shard?\n\n  Why quorum? \n", encoding="utf-8")
    assert questions.from_file(path) == (Question(text="What is a shard?"), Question(text="Why quorum?"))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_questions_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(content)
    with pytest.raises(NoQuestionsError, match=r"questions\.txt"):
        questions.from_file(path)


def test_the_builtin_corpus_is_bounded_and_whole() -> None:
    documents = list(corpus.builtin())
    passages = [passage for document in documents for passage in document.passages]
    assert 200 < len(passages) <= corpus.PASSAGES_MAX
    assert len({document.document_id for document in documents}) == len(documents)
    assert all(passage.text.strip() and passage.title for passage in passages)


def test_a_corpus_file(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [{"_id": 1, "text": "one", "title": "t"}, {"_id": "b", "text": "two", "vector": [0.6, 0.8]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = corpus.from_file(path)
    assert (first.document_id, first.passages[0].text, first.passages[0].title) == ("1", "one", "t")
    assert second.passages[0].vector == [0.6, 0.8]


@pytest.mark.parametrize("line", ["{", "[]", '{"_id": "a"}', '{"text": "a"}'])
def test_a_malformed_corpus_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "t"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(corpus.CorpusError, match=r"corpus\.jsonl:2"):
        list(corpus.from_file(path))
    with pytest.raises(corpus.CorpusError, match="No such file"):
        list(corpus.from_file(tmp_path / "none.jsonl"))
