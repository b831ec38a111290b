"""`make loadtest`: offer the planned load to a running or freshly started mesh and judge what was observed.

Exit codes: 0 every objective met, 1 one breached, 2 a mistake in the SLO file, the mesh file or an argument,
3 the mesh could not be used, 5 undecided (too few samples, or the generator itself was the bottleneck).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from loadtest import corpus, discovery, questions
from loadtest.arrivals import scaled
from loadtest.mesh import client_of, running_mesh
from loadtest.plan import GENERATOR_FILE, SAMPLES_FILE, Plan, without_text_calls, write_plan
from loadtest.report import GeneratorHealth, Run, as_json, as_text, schedule_lag_ms_p99
from loadtest.samples import Sample, read_samples
from loadtest.slo import Slo, SloError, load_slo
from loadtest.verdict import Outcome, complete, judge
from ostraka.cli.supervisor import SupervisorError
from ostraka.client import Client
from ostraka.errors import OstrakaError
from services.runtime.config import Config, ConfigError

EXIT_CODES = {Outcome.MET: 0, Outcome.BREACHED: 1, Outcome.UNDECIDED: 5}
EXIT_MISTAKE = 2
EXIT_MESH = 3
GENERATOR_GRACE_S = 60.0
"""How much longer than the plan the generator process may take."""


class GeneratorError(RuntimeError):
    """The generator process did not do its work; the message says where to look."""


def main() -> int:
    """Parse arguments, run, print; returns the exit code."""
    args = _arguments()
    try:
        slo = load_slo(args.slo)
        load = replace(slo.load, seed=slo.load.seed if args.seed is None else args.seed)
        load = replace(load, collection=args.collection or load.collection)
        run = asyncio.run(offer(replace(slo, load=load), args))
    except (SloError, ConfigError, corpus.CorpusError, questions.NoQuestionsError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except (OstrakaError, SupervisorError, GeneratorError) as error:
        print(f"loadtest: the mesh cannot be used: {error}", file=sys.stderr)
        return EXIT_MESH
    text = as_text(run)
    (Path(run.directory) / "report.txt").write_text(text + "\n", encoding="utf-8")
    (Path(run.directory) / "report.json").write_text(json.dumps(as_json(run), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(as_json(run)) if args.json else text)
    return EXIT_CODES[run.verdict.outcome]


async def offer(slo: Slo, args: argparse.Namespace) -> Run:
    """One run from the seeding to the verdict."""
    phases = scaled(slo.phases, args.duration) if args.duration else slo.phases
    directory = args.reports / datetime.now(UTC).strftime("loadtest-%Y%m%dT%H%M%S.%f")
    async with (
        running_mesh(args.mesh_file, collection=slo.load.collection) as config,
        client_of(config, slo.load.collection) as client,
    ):
        asked = await _questions(client, config, slo, args)
        if problem := without_text_calls(slo.load, asked):
            raise SloError(problem)
        plan = Plan(mesh_file=str(config.path), load=slo.load, phases=phases, questions=asked)
        directory.mkdir(parents=True)
        write_plan(directory, plan)
        calls = plan.calls()
        duration_s = sum(phase.duration_s for phase in phases)
        _say(f"{len(calls):,} calls planned over {duration_s:g} s, {len(asked):,} questions; generator starts")
        await _generate(directory, duration_s)
        await _clean_up(client, len(asked))
    samples = complete(calls, tuple(read_samples(directory / SAMPLES_FILE)))
    return Run(
        slo=slo,
        phases=phases,
        target=config.router.addresses[0],
        directory=str(directory),
        samples=samples,
        verdict=judge(slo.objectives, phases, samples),
        generator=_health(directory, samples),
    )


async def _questions(
    client: Client, config: Config, slo: Slo, args: argparse.Namespace
) -> tuple[questions.Question, ...]:
    if args.questions:
        return questions.from_file(args.questions)
    dim = config.collections[slo.load.collection].dim
    found = await discovery.discover(client, dim=dim, kind=slo.load.questions, seed=slo.load.seed)
    if not found:
        _say(f"collection {slo.load.collection!r} holds nothing to ask about; storing some documents first")
        documents = corpus.from_file(args.corpus) if args.corpus else corpus.builtin()
        _say(f"{await corpus.seed(client, documents):,} passages stored")
        found = await discovery.discover(client, dim=dim, kind=slo.load.questions, seed=slo.load.seed)
    if not found:
        raise questions.NoQuestionsError(f"collection {slo.load.collection!r} yields no {slo.load.questions} questions")
    return found


async def _generate(directory: Path, duration_s: float) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "loadtest.generator", str(directory))
    try:
        async with asyncio.timeout(duration_s + GENERATOR_GRACE_S):
            code = await process.wait()
    except TimeoutError:
        raise GeneratorError(
            f"the generator did not end {GENERATOR_GRACE_S:g} s after its plan; see {directory}"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise GeneratorError(f"the generator ended with exit code {code}; see {directory}")


async def _clean_up(client: Client, written_max: int) -> None:
    """Delete what the writers of the mix stored; deleting what never existed is harmless."""
    ids = [f"{questions.WRITER_PREFIX}{number}" for number in range(written_max)]
    for start in range(0, len(ids), discovery.GET_IDS_MAX):
        part = ids[start : start + discovery.GET_IDS_MAX]
        missing = set((await client.get(part)).missing)
        if stored := [document_id for document_id in part if document_id not in missing]:
            await client.delete(stored)


def _health(directory: Path, samples: tuple[Sample, ...]) -> GeneratorHealth:
    raw = json.loads((directory / GENERATOR_FILE).read_text(encoding="utf-8"))
    return GeneratorHealth(
        cpu_share=raw["cpu_share"],
        inflight_peak=raw["inflight_peak"],
        schedule_lag_ms_p99=schedule_lag_ms_p99(samples),
        versions=raw["versions"],
    )


def _say(text: str) -> None:
    print(f"loadtest: {text}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__.partition("\n")[0])
    parser.add_argument("--slo", type=Path, default=Path(__file__).with_name("slo.toml"), help="SLO file")
    parser.add_argument("--mesh-file", type=Path, help="mesh to load; started and stopped again unless it is running")
    parser.add_argument("--duration", type=float, help="stretch or shorten the phases to this many seconds in all")
    parser.add_argument("--seed", type=int, help="instead of the SLO file's")
    parser.add_argument("--collection", help="instead of the SLO file's")
    parser.add_argument("--questions", type=Path, help="one question a line; default: taken from the collection")
    parser.add_argument("--corpus", type=Path, help="JSON lines to store in an empty collection; default: pydoc topics")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="where the run's directory goes")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON line")
    args = parser.parse_args()
    if args.duration is not None and not 0 < args.duration <= 86_400:
        parser.error(f"--duration must be above 0 and at most a day, not {args.duration}")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed must be at least 0, not {args.seed}")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
