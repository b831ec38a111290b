"""The demonstration, step by step, in a mesh of its own."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from observability.trace_files import build_tree, read_spans
from observability.waterfall import render
from ostraka.answers import Answer, Delta, Retrieved
from ostraka.cli.demo.corpus import NOTICE_AFTER, NOTICE_BEFORE, NOTICE_ID, write_corpus, write_notice
from ostraka.cli.demo.stage import Stage
from ostraka.cli.mesh_commands import print_mesh
from ostraka.cli.output import CONSOLE
from ostraka.cli.query_commands import print_event
from ostraka.cli.supervisor import Supervisor, to_the_end
from ostraka.cli.write_commands import ingest_into, print_report
from ostraka.client import Client
from ostraka.ingest.chunker import ChunkLimits
from ostraka.ingest.pipeline import IngestLimits
from ostraka.mesh_status import MeshStatus
from services.runtime.config import Config

COLLECTION = "docs"
QUESTIONS = (
    "What is a context manager?",
    "How do I compute the median of numeric data?",
    "What is the difference between a shallow and a deep copy?",
)
NOTICE_QUESTION = "When does the reading room of the Ostraka archive open?"
VICTIM = "node-b"
SPAN_ASK = "ostraka.v1.RouterService/Ask"
PASSAGES_MIN, PASSAGES_MAX = 1_000, 2_000
LIMITS = IngestLimits(chunks=ChunkLimits(words_target=90, overlap_words_max=15))
"""Short passages: they embed faster, and this story has no use for long ones."""
EXPORT_S = 20.0
"""Spans are written in batches; a trace is complete a moment after its answer."""
HEAL_S = 60.0
_POLL_S = 0.2


class Demo:
    """One run against a prepared mesh; the caller stops the processes whatever happens."""

    def __init__(self, config: Config, supervisor: Supervisor, corpus: Path) -> None:
        self.stage = Stage()
        self.answers: list[Answer] = []
        self._config = config
        self._supervisor = supervisor
        self._corpus = corpus

    async def run(self) -> None:
        """Everything. Raises DemoFailedError, OstrakaError or SupervisorError."""
        await self._start()
        async with Client(self._config.router.addresses, certs=self._config.certs_dir, collection=COLLECTION) as client:
            await self._ingest()
            self.stage.step("Three questions")
            answers = [await self._ask(client, question) for question in QUESTIONS]
            before = await self._ask(client, NOTICE_QUESTION, show=False)
            self.stage.check(_says(before, NOTICE_BEFORE), f"the answer about {NOTICE_ID} is the one ingested")
            await self._kill(client, answers[0])
            await self._update(client)
            await self._heal(client)
        self._farewell()

    async def _start(self) -> None:
        stage = self.stage
        stage.step(f"A mesh of {len(self._supervisor.seats)} processes, mutual TLS between all of them")
        began_s = time.monotonic()
        names = await to_the_end(self._supervisor.start_all)
        stage.say(f"started {', '.join(names)}; waiting until each says SERVING")
        await self._supervisor.wait_serving()
        stage.check(
            len(self._supervisor.running()) == len(self._supervisor.seats),
            f"{len(names)} processes are SERVING after {time.monotonic() - began_s:.0f} s",
        )

    async def _ingest(self) -> None:
        self.stage.step("Documents: Python's language reference, the library's docstrings")
        folders = await asyncio.to_thread(write_corpus, self._corpus)
        report = await ingest_into(self._config, folders, COLLECTION, limits=LIMITS, show=not CONSOLE.quiet)
        print_report(report)
        self.stage.check(report.ok and not report.skipped, "every document was acknowledged by a write quorum")
        self.stage.check(
            PASSAGES_MIN <= report.passages <= PASSAGES_MAX, f"{report.passages:,} passages are searchable"
        )

    async def _ask(self, client: Client, question: str, *, show: bool = True) -> Answer:
        """Ask, print the stream, the provenance and the waterfall; check that the answer can be checked."""
        if show:
            CONSOLE.print()
            CONSOLE.print(f"> {question}", style="bold", markup=False)
        answer: Answer | None = None
        retrieved: Retrieved | None = None
        streamed = ""
        async for event in client.ask(question):
            if isinstance(event, Retrieved):
                retrieved = event
            elif isinstance(event, Delta):
                streamed += event.text
            else:
                answer = event
            if show:
                print_event(event)
        assert answer is not None, "a stream without an answer raises"
        assert retrieved is not None, "Retrieved is the first event"
        self.answers.append(answer)
        self.stage.check(answer.complete, "every shard answered at QUORUM")
        cited = {p.passage_id for p in answer.provenance if p.cited and p.in_prompt}
        self.stage.check(
            bool(answer.citations) and cited == {c.passage_id for c in answer.citations},
            f"each of its citations ({len(answer.citations)}) is of a passage in the prompt",
            f"cited {sorted(cited)}, citations {answer.citations}, abstained {answer.abstained}",
        )
        self.stage.check(
            [p.passage_id for p in answer.provenance] == [hit.passage.passage_id for hit in retrieved.hits],
            "the provenance lists exactly the passages retrieved",
        )
        if show:
            await self._waterfall(answer.trace_id)
        return answer

    async def _waterfall(self, trace_id: str) -> None:
        """Print the trace once all of its processes have exported their part."""
        if self._config.telemetry.otlp_endpoint:
            self.stage.say(f"trace {trace_id} went to {self._config.telemetry.otlp_endpoint}")
            return
        deadline_s = time.monotonic() + EXPORT_S
        while True:
            spans = await asyncio.to_thread(read_spans, self._config.traces_dir, trace_id)
            roots = build_tree(spans)
            services = {span.service for span in spans}
            complete = len(roots) == 1 and roots[0].span.name == SPAN_ASK and len(services) >= 3
            if complete or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(_POLL_S)
        CONSOLE.print(render(spans, max(100, min(CONSOLE.width, 160))), markup=False, soft_wrap=True)
        self.stage.check(
            complete,
            f"one trace of {len(spans)} spans from {len(services)} services",
            f"{len(roots)} roots from {sorted(services)} after {EXPORT_S:g} s",
        )

    async def _kill(self, client: Client, before: Answer) -> None:
        self.stage.step(f"SIGKILL for {VICTIM}, and the first question again")
        await to_the_end(self._supervisor.kill, VICTIM)
        self.stage.check(self._supervisor.process(VICTIM) is None, f"{VICTIM} is dead")
        after = await self._ask(client, QUESTIONS[0])
        self.stage.check(
            [(p.passage_id, p.version) for p in after.provenance]
            == [(p.passage_id, p.version) for p in before.provenance],
            "the same passages in the same versions and order as before the kill",
            f"{[p.passage_id for p in after.provenance]} instead of {[p.passage_id for p in before.provenance]}",
        )
        self.stage.check(after.text == before.text, "the same answer, word for word")

    async def _update(self, client: Client) -> None:
        self.stage.step(f"{NOTICE_ID} is replaced while {VICTIM} is down")
        folder = await asyncio.to_thread(write_notice, self._corpus, NOTICE_AFTER)
        report = await ingest_into(self._config, [folder], COLLECTION, limits=LIMITS, show=False)
        self.stage.check(report.ok and report.documents == 1, "the replacement was acknowledged by a write quorum")
        after = await self._ask(client, NOTICE_QUESTION)
        self.stage.check(_says(after, NOTICE_AFTER), "the new text answers at once")
        stored = await client.get([NOTICE_ID])
        self.stage.check(
            len(stored.passages) == 1 and stored.passages[0].text in NOTICE_AFTER, "nothing of the old text is left"
        )

    async def _heal(self, client: Client) -> None:
        self.stage.step(f"{VICTIM} comes back")
        await to_the_end(self._supervisor.start, VICTIM)
        await self._supervisor.wait_serving([VICTIM])
        deadline_s = time.monotonic() + HEAL_S
        mesh: MeshStatus = await client.status()
        while not mesh.converged(COLLECTION) and time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
            mesh = await client.status()
        print_mesh(mesh)
        self.stage.check(
            mesh.converged(COLLECTION), f"{VICTIM} caught up: the replicas of each shard applied the same batches"
        )

    def _farewell(self) -> None:
        traces = self._config.traces_dir
        self.stage.step("Traces")
        self.stage.say(
            f"""The traces of this run are in {traces} (OTLP-JSON, one file per process).
Again as a waterfall:  ostraka trace {self.answers[-1].trace_id} --mesh-file {self._config.path}
In Jaeger:             docker run --rm -p 16686:16686 -p 4317:4317 jaegertracing/jaeger:latest
                       then http://localhost:16686, Search, Upload: the *.jsonl files of that folder;
                       or run this again with OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317.
All {len(self.stage.checks)} checks held, in {self.stage.elapsed_s:.0f} s."""
        )


def cancel_on_sigterm() -> None:
    """SIGTERM ends the demonstration like Ctrl-C, so that it stops what it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _says(answer: Answer, notice: str) -> bool:
    """The answer quotes the notice's sentence."""
    sentence = notice.splitlines()[-1]
    return sentence.rstrip(".") in " ".join(answer.text.split())
