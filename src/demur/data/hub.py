"""Files of data sets on the Hugging Face hub, or one sentence on why they cannot be had."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from demur.errors import FileError, first_line

Why = Literal["extra", "gated", "missing", "network"]


class HubError(FileError):
    """The hub does not give what was asked for."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why: Why = why


def fetch(repo: str, patterns: Sequence[str], cached: bool = False) -> Path:
    """The folder of a snapshot of a data set, laid out as its repository, with the files that match the patterns.

    What is in the hub's cache is used as it is where the hub cannot be reached, and with `cached` without asking it.
    The folder is called after the revision. Tokens are huggingface_hub's own: HF_TOKEN, or `hf auth login`.

    Raises:
        HubError: the client is not installed, the set is gated or gone, or the hub cannot be reached.
    """
    with _asking(repo):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repo, repo_type="dataset", allow_patterns=list(patterns), local_files_only=cached)
        )


def check(repo: str) -> None:
    """Asks the hub whether we may read a data set.

    Raises:
        HubError: as for `fetch`.
    """
    with _asking(repo):
        from huggingface_hub import HfApi

        HfApi().auth_check(repo, repo_type="dataset")


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    try:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError as error:
        raise HubError("extra", "huggingface_hub is not installed; type pip install 'demur[hub]'") from error
    try:
        yield
    except GatedRepoError as error:
        raise HubError(
            "gated",
            f"{repo} is gated: ask for access at https://huggingface.co/datasets/{repo} and type `hf auth login` "
            "(or set HF_TOKEN)",
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError("missing", f"the hub shows no data set {repo} to you (is HF_TOKEN right?)") from error
    except Exception as error:
        # The client lets through errors of whichever HTTP library it is built on; all of them mean: not now.
        raise HubError("network", f"the hub cannot be reached ({first_line(error)})") from error
