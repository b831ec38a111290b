"""The mesh file: what is accepted, and that every refusal names the key."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from services.runtime.config import Config, ConfigError, load, parse

NODES = {f"n{i}": {"address": f"127.0.0.1:{7410 + i}"} for i in range(3)}
COLLECTION = {"shards": 2, "replicas": 3, "read_quorum": 2, "write_quorum": 2}


def made(environ: dict[str, str] | None = None, **sections: Any) -> Config:
    return parse({"nodes": NODES, **sections}, Path("/tmp/mesh.toml"), environ or {})


def test_empty_file_is_the_default_mesh() -> None:
    config = parse({}, Path("/somewhere/mesh.toml"), {})
    assert config.data_dir == Path("/somewhere/.mesh")
    assert config.certs_dir == Path("/somewhere/.mesh/certs")
    assert config.replica_dir("n1", "ab") == Path("/somewhere/.mesh/nodes/n1/ab")
    with pytest.raises(FrozenInstanceError):
        config.mesh = config.mesh  # type: ignore[misc]  # that it is refused is the point


def test_values_and_tables_are_read() -> None:
    config = made(mesh={"data_dir": "elsewhere", "drain_s": 2}, collections={"docs": COLLECTION})
    assert config.data_dir == Path("/tmp/elsewhere")
    assert config.mesh.drain_s == 2.0
    assert config.collections["docs"].shards == 2
    assert config.collections["docs"].metadata == {}
    declared = made(collections={"docs": {**COLLECTION, "metadata": {"year": "integer", "draft": "flag"}}})
    assert declared.collections["docs"].metadata == {"year": "integer", "draft": "flag"}
    assert config.nodes["n1"].address == "127.0.0.1:7411"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"router": {"k_maxx": 1}}, r"\[router\] has no key 'k_maxx'.*k_max"),
        ({"routr": {}}, r"unknown section \[routr\]"),
        ({"router": {"k_max": "many"}}, r"router\.k_max must be int, not 'many'"),
        ({"router": {"k_max": True}}, r"router\.k_max must be int, not True"),
        ({"router": {"k_max": 0}}, r"router\.k_max must be at least 1, not 0"),
        ({"router": 3}, r"\[router\] must be a table, not int"),
        ({"router": {"addresses": []}}, r"router\.addresses must be a non-empty list"),
        ({"router": {"addresses": [1]}}, r"router\.addresses must be a non-empty list of strings"),
        ({"router": {"addresses": ["nowhere"]}}, "'nowhere' is not HOST:PORT"),
        ({"router": {"addresses": ["h:99999"]}}, "'h:99999' is not HOST:PORT"),
        ({"router": {"addresses": ["127.0.0.1:7401"]}}, "'127.0.0.1:7401' is given to two processes"),
        ({"router": {"relevance_min": 1.5}}, r"router\.relevance_min must be from 0 to 1"),
        ({"telemetry": {"sample_ratio": 2.0}}, r"telemetry\.sample_ratio must be from 0 to 1"),
        ({"telemetry": {"log_level": "loud"}}, r"telemetry\.log_level must be one of debug, info"),
        ({"generator": {"backend": "openai"}}, r"generator\.base_url is needed"),
        ({"nodes": {"a": {}}}, r"\[nodes\.a\] needs 'address'"),
        ({"nodes": {"a": {"address": "h:1", "port": 1}}}, r"\[nodes\.a\] has no key 'port'"),
        ({"collections": {"docs": {"replicas": 4}}}, "replicas is 4 but the mesh has 3 nodes"),
        ({"collections": {"docs": {"metadata": 3}}}, r"collections\.docs\.metadata\] must be a table"),
        ({"collections": {"docs": {"metadata": {"year": "int"}}}}, r"metadata\.year must be one of text, integer, n"),
        ({"collections": {"docs": {"metadata": {"source": "text"}}}}, r"metadata\.source: source is built in"),
        ({"collections": {"docs": {"metadata": {"a b": "text"}}}}, r"'a b' is not a field name"),
        ({"collections": {"docs": {"metadata": {"And": "text"}}}}, r"metadata\.And: And is a word of filter expr"),
        ({"collections": {"docs": {"metadata": {f"f{n}": "text" for n in range(65)}}}}, "65 fields; at most 64"),
        ({"collections": {"docs": {"read_quorum": 4}}}, r"read_quorum must be 1 to 3"),
        ({"collections": {"docs": {"read_quorum": 1}}}, r"read_quorum 1 \+ write_quorum 2 <= replicas 3"),
        ({"collections": {"docs": {"shards": 0}}}, r"collections\.docs\.shards must be 1 to 64"),
        ({"collections": {"docs": {"dim": 9999}}}, r"collections\.docs\.dim must be 1 to 4096"),
        ({"collections": {"a/b": COLLECTION}}, "a collection name is"),
        ({"collections": {"c" * 65: COLLECTION}}, "a collection name is"),
    ],
)
def test_refusals_name_the_key(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**sections)


def test_weak_quorums_only_when_allowed() -> None:
    config = made(collections={"docs": {"read_quorum": 1, "write_quorum": 1, "allow_weak": True}})
    assert config.collections["docs"].allow_weak


def test_environment_overrides_and_is_typed() -> None:
    config = made(
        {
            "OSTRAKA_ROUTER_K_MAX": "7",
            "OSTRAKA_MESH_DRAIN_S": "1.5",
            "OSTRAKA_TELEMETRY_INCLUDE_TEXT": "true",
            "OSTRAKA_EMBED_ADDRESSES": "h1:1, h2:2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        },
        router={"k_max": 3},
    )
    assert (config.router.k_max, config.mesh.drain_s, config.telemetry.include_text) == (7, 1.5, True)
    assert config.embed.addresses == ("h1:1", "h2:2")
    assert config.telemetry.otlp_endpoint == "http://127.0.0.1:4317"


@pytest.mark.parametrize(("name", "text"), [("ROUTER_K_MAX", "many"), ("TELEMETRY_INCLUDE_TEXT", "maybe")])
def test_environment_refusals_name_the_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"OSTRAKA_{name}: '{text}'"):
        made({f"OSTRAKA_{name}": text})


def test_load_reads_toml_and_finds_the_file_by_environment(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text('[nodes.a]\naddress = "127.0.0.1:1"\n', encoding="utf-8")
    assert load(None, {"OSTRAKA_MESH_FILE": str(file)}).nodes["a"].address == "127.0.0.1:1"


def test_load_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "none.toml", {})
    broken = tmp_path / "broken.toml"
    broken.write_text("[mesh\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load(broken, {})
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load(broken, {})


@pytest.mark.parametrize(
    ("lexical", "message"),
    [
        ({"language": "klingon"}, "lexical.language must be one of english, none"),
        ({"k1": float("nan")}, "lexical.k1 must be from 0 to 10"),
        ({"b": 1.5}, "lexical.b must be from 0 to 1"),
        ({"stemmer": "porter"}, "has no key 'stemmer'; known: b, k1, language"),
        (3, "must be a table"),
    ],
)
def test_a_bad_lexical_section_is_named(lexical: object, message: str) -> None:
    raw = {
        "nodes": {"n1": {"address": "127.0.0.1:1"}},
        "collections": {"docs": {"replicas": 1, "read_quorum": 1, "write_quorum": 1, "lexical": lexical}},
    }
    with pytest.raises(ConfigError, match=message):
        parse(raw, Path("mesh.toml"), {})


def test_a_collection_says_how_its_words_are_searched() -> None:
    raw = {
        "nodes": {"n1": {"address": "127.0.0.1:1"}},
        "collections": {
            "docs": {"replicas": 1, "read_quorum": 1, "write_quorum": 1, "lexical": {"language": "none", "k1": 1}}
        },
    }
    lexical = parse(raw, Path("mesh.toml"), {}).collections["docs"].lexical
    assert (lexical.language, lexical.k1, lexical.b) == ("none", 1.0, 0.75)


def test_scrape_ports_must_fit(tmp_path: Path) -> None:
    raw = {"telemetry": {"metrics_port": 65_534}, "nodes": {"a": {"address": "127.0.0.1:1"}}}
    with pytest.raises(ConfigError, match="metrics_port 65534 leaves no ports for 4 processes"):
        parse(raw, tmp_path / "mesh.toml", {})
