"""GGUF files: read by transformers once, then kept as safetensors in the user's cache, keyed by the file's hash."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch

from demur.config import cache_folder
from demur.errors import FileError, ModelError, first_line
from demur.files import nearest


def converted(path: Path) -> Path:
    """A folder with the file's weights dequantised to float32, its config and its tokenizer.

    The first call takes about 30 s for 135M parameters, later ones no time.

    Raises:
        FileError: no such file, or not a GGUF file.
        ModelError: transformers cannot read it.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist{nearest(path)}")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FileError(f"{path} is not a GGUF file (it does not begin with GGUF).")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder() / "gguf" / digest
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may convert at once; each works in its own folder and the first to finish stays.
        scratch = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=folder.parent))
        try:
            _convert(path, scratch)
            if not (folder / "config.json").is_file():
                scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        quantised = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    except Exception as error:  # the reader raises whatever its parts raise
        raise ModelError(f"transformers cannot read {path} ({type(error).__name__}: {first_line(error)}).") from error
    # A model that knows it came from a quantised file refuses to be saved; a plain one with the same weights does not.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
