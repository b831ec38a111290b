"""Who may import whom. Each failure says which rule was broken and what to do about it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("ostraka", "services", "observability", "loadtest", "benchmarks", "deploy")
SERVICES = ("embed", "router", "shard", "generator")

# Importer prefix -> prefixes of this repository it may import. The longest matching importer wins.
ALLOWED: dict[str, tuple[str, ...]] = {
    "services.quorum": ("services.quorum",),
    "services.placement": ("services.placement", "services.quorum"),
    "services.runtime": ("services.runtime", "observability", "ostraka.v1"),
    **{
        f"services.{name}": (f"services.{name}", "services.runtime", "services.quorum", "observability", "ostraka.v1")
        for name in SERVICES
    },
    "observability": ("observability", "ostraka.v1"),
    "ostraka.cli": ("ostraka", "services", "observability", "loadtest", "benchmarks", "deploy"),
    "ostraka.v1": ("ostraka.v1",),
    "ostraka": ("ostraka",),
    "loadtest": ("ostraka", "services", "observability", "loadtest", "benchmarks", "deploy", "tests"),
    "benchmarks": ("ostraka", "services", "observability", "loadtest", "benchmarks", "deploy", "tests"),
    "deploy": ("deploy",),
}

# Third-party or standard module -> (rooms the rule holds in, the files that may import it).
SINGLE_IMPORTERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "faiss": (ROOMS, ("services/shard/faiss_index/", "benchmarks/")),
    "apsw": (ROOMS, ("services/shard/store.py",)),
    "sqlite3": (ROOMS, ()),
    "opentelemetry.sdk": (ROOMS, ("observability/tracing.py", "observability/metrics_export.py")),
    "time": (("services",), ("services/runtime/clock.py",)),
    "random": (("services/quorum", "services/placement"), ()),
    "pickle": (ROOMS, ()),
}

# Modules that decide and do nothing else: values in, values out.
PURE_FORBIDDEN = (
    "grpc",
    "asyncio",
    "time",
    "random",
    "opentelemetry",
    "threading",
    "os",
    "ostraka.v1",
    "services.runtime",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every (line, absolute module) that a file imports, names of `from` imports appended."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def sources(*rooms: str) -> list[Path]:
    return sorted(
        path
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    )


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def rule_for(module: str) -> tuple[str, ...]:
    matches = [prefix for prefix in ALLOWED if within(module, prefix)]
    return ALLOWED[max(matches, key=len)] if matches else ()


def test_arrows_go_one_way() -> None:
    broken = []
    for path in sources(*ROOMS):
        name = module_name(path)
        if name in ("services",):
            continue
        for line, target in imports(path):
            if target.split(".")[0] not in (*ROOMS, "tests"):
                continue
            if not any(within(target, prefix) for prefix in rule_for(name)):
                broken.append(
                    f"{path.relative_to(ROOT)}:{line} imports {target}; {name} may import only "
                    f"{', '.join(rule_for(name))}. Move what is shared down to a room both may import, "
                    "or pass it as an argument."
                )
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize("library", SINGLE_IMPORTERS)
def test_single_importers(library: str) -> None:
    rooms, allowed = SINGLE_IMPORTERS[library]
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {target}; only {', '.join(allowed) or 'nobody'} may. "
        "Use what that file offers."
        for path in sources(*rooms)
        if not str(path.relative_to(ROOT)).startswith(tuple(allowed) or ("\0",))
        for line, target in imports(path)
        if within(target, library)
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_environment_is_read_in_one_file() -> None:
    broken = []
    for path in sources("services", "observability", "ostraka"):
        if path == ROOT / "services/runtime/config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                broken.append(
                    f"{path.relative_to(ROOT)}:{node.lineno} reads the environment; services/runtime/config.py does"
                )
    assert not broken, "\n" + "\n".join(broken)


def test_quorum_and_placement_decide_and_do_nothing_else() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {target}; decisions get time, randomness and replies as values"
        for path in sources("services/quorum", "services/placement")
        for line, target in imports(path)
        if any(within(target, forbidden) for forbidden in PURE_FORBIDDEN)
    ]
    assert not broken, "\n" + "\n".join(broken)


def test_no_room_for_odds_and_ends() -> None:
    names = {path.stem for path in sources(*ROOMS)} | {path.parent.name for path in sources(*ROOMS)}
    assert not names & {"common", "utils", "util", "helpers", "helper", "manager", "misc"}


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(*ROOMS)
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"modules without a docstring: {', '.join(silent)}"


def test_no_insecure_ports() -> None:
    words = ("insecure_" + "channel", "add_insecure_" + "port")
    found = [
        str(path.relative_to(ROOT)) for path in sources(*ROOMS, "tests") for word in words if word in path.read_text()
    ]
    assert not found, f"mutual TLS is the only way in: {found}"
