"""Everything demur raises on purpose.

    DemurError
    ├── SettingsError     a flag, a key or a value that no stage knows
    ├── FileError         a file that is missing, truncated, of another kind, or hostile
    ├── ModelError        a model that cannot be had, or whose structure is not understood
    ├── PromptError       an empty set, a prompt longer than the context, a row without what it needs
    ├── SAEError          a feature out of range, a width that does not fit
    ├── TrainingError     activations that are not finite, a process that left the others
    ├── PolicyError       an unknown policy, or one made for another model or SAE
    ├── JudgeError        a judge that is unknown, cannot be had, or does not answer
    ├── EndpointError     a model behind an endpoint that does not answer, or turns us away
    ├── StoreError        the store of answers and appeals cannot be opened, read or written
    └── AppealError       an answer or an appeal that is not there
        └── DecidedError  an appeal that is decided already

A message is one sentence or two that say what was given, what was expected and what to type. The command line prints
it without a traceback (`--debug` shows it) and exits with 1.
"""


class DemurError(Exception):
    """Bad input or a state that the user can mend; the message is written for them."""


class SettingsError(DemurError):
    """A setting is unknown, of the wrong type or out of bounds."""


class FileError(DemurError):
    """A file is missing, unreadable, truncated or not what it should be."""


class ModelError(DemurError):
    """A model cannot be loaded, or its blocks cannot be found."""


class PromptError(DemurError):
    """A prompt or a set of prompts cannot be used."""


class SAEError(DemurError):
    """An SAE does not fit the model, or a feature is not in it."""


class TrainingError(DemurError):
    """Training cannot go on: activations that are not finite, or another of its processes ended."""


class PolicyError(DemurError):
    """A policy is unknown or was made for another model or SAE."""


class JudgeError(DemurError):
    """A judge is unknown, cannot be had, or does not answer."""


class EndpointError(DemurError):
    """A model behind an endpoint does not answer, or turns us away."""


class StoreError(DemurError):
    """The store of answers and appeals cannot be opened, read or written; what was acknowledged is still there."""


class AppealError(DemurError):
    """An answer or an appeal is not there, or not this user's."""


class DecidedError(AppealError):
    """An appeal is decided already."""


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of what an error of somebody else's says, or its kind where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:most].rstrip(".")
