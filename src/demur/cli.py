"""The command line: verbs, a config file, and errors in one sentence.

Verbs are named here and imported only when used, so that `demur --help` answers at once.
"""

import difflib
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml
from cyclopts.exceptions import UnknownOptionError
from docstring_parser import parse

from demur import __version__
from demur.errors import DemurError, SettingsError

VERBS = {
    "demo": ("demur.verbs.demo:demo_verb", "The whole line on the embedded model: a report, and its path."),
    "train": ("demur.verbs.train:train_verb", "Text → SAE."),
    "sae-report": ("demur.verbs.sae_report:sae_report_verb", "An SAE → how good it is: one HTML page."),
    "find": ("demur.verbs.find:find_verb", "SAE + prompts → features that write refusal and read harm."),
    "calibrate": ("demur.verbs.calibrate:calibrate_verb", "Features + a false-refusal budget → policies."),
    "make-policy": ("demur.verbs.make_policy:make_policy_verb", "A model → its SAE, features, policy and a report."),
    "rivals": ("demur.verbs.rivals:rivals_verb", "Other methods, controls and the paper's arms → policies."),
    "chat": ("demur.verbs.chat:chat_verb", "A policy → a conversation."),
    "evaluate": ("demur.verbs.evaluate:evaluate_verb", "Policies × prompts → a table with intervals."),
    "attack": ("demur.verbs.attack:attack_verb", "Attacks on policies → what each wins, with intervals."),
    "feedback": ("demur.verbs.feedback:feedback_verb", "Appeals → decisions, a labelled prompt set, counts."),
    "pardon": ("demur.verbs.pardon:pardon_verb", "Upheld appeals + a policy → a policy that answers them."),
    "judge": ("demur.verbs.judge:judge_verb", "A judge against people's labels; the classifier fitted anew."),
    "convert": ("demur.verbs.convert:convert_verb", "An SAE in any known format → the same in another."),
    "sets": ("demur.verbs.sets:sets_verb", "Prompt sets by name → where each can be had from here."),
    "serve": ("demur.verbs.serve:serve_verb", "A policy → an OpenAI-compatible API."),
    "report": ("demur.verbs.report:report_verb", "A run → one HTML page."),
    "inspect": ("demur.verbs.inspect:inspect_verb", "Any file → what it is."),
}

app = App(
    name="demur",
    help="Makes a language model refuse what it should, and only that, without touching its weights.",
    version=__version__,
    exit_on_error=False,
    print_error=False,
    help_on_error=False,
)
for _name, (_where, _help) in VERBS.items():
    app.command(_where, name=_name, help=_help)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(name=["-c", "--config"])] = None,
    data_dir: Path | None = None,
    debug: bool = False,
) -> None:
    """Common to all verbs.

    Parameters
    ----------
    config
        TOML file with a section for the verb, such as [train]; flags go before it.
    data_dir
        Folder of evaluation and training data, instead of DEMUR_DATA.
    debug
        Show the traceback of an error.
    """
    if data_dir is not None:
        from demur.config import data_folder

        os.environ["DEMUR_DATA"] = str(data_folder(data_dir))
    if config is not None:
        if not config.is_file():
            raise SettingsError(f"config {config} does not exist; give a TOML file with a section [{_verb(tokens)}].")
        app.config = (Toml(config, must_exist=True),)
    app(tokens)


def _tell_all(verb: str) -> None:
    # The list of verbs has a line for each; a verb's own help has its whole docstring, and the examples, which cyclopts
    # leaves out.
    chosen = app[verb]
    said = parse(chosen.default_command.__doc__ or "")
    chosen.help = said.description
    examples = [line for e in said.examples for line in (e.description or "").splitlines()]
    chosen.help_epilogue = "\n".join(["Examples:", "", *(f"    {line}" for line in examples)])


def _verb(tokens: tuple[str, ...]) -> str:
    return next((t for t in tokens if not t.startswith("-")), "verb")


def main() -> None:
    """Runs the command line: exit 0 done, 1 our error in one sentence, 2 wrong usage, 130 after Ctrl-C."""
    debug = "--debug" in sys.argv
    words = tuple(sys.argv[1:])
    if _verb(words) in VERBS and not {"--help", "-h"}.isdisjoint(words):
        _tell_all(_verb(words))
    app.config = ()  # a call before this one, in the same process, may have had its own, even for what is common to all
    try:
        app.meta(words)
    except DemurError as error:
        if debug:
            raise
        _stop(str(error), 1)
    except CycloptsError as error:
        if debug:
            raise
        token = getattr(error, "token", None)  # a word, where the order of arguments is wrong
        if getattr(token, "source", "") in ("", "cli"):
            _stop(f"{_in_words(error)} Type `demur {_verb(words)} --help` for what it takes.", 2)
        # What a file says is input, not usage.
        _stop(_unknown_key(error) if isinstance(error, UnknownOptionError) else str(error), 1)
    except KeyboardInterrupt:
        _stop("stopped; the same command with the same --run goes on from here.", 130)


def _in_words(error: CycloptsError) -> str:
    from pydantic import ValidationError

    from demur.records import first_problem

    # A value out of bounds is found by the settings themselves, whose own message is a paragraph.
    return f"{first_problem(error.__cause__)}." if isinstance(error.__cause__, ValidationError) else str(error)


def _unknown_key(error: UnknownOptionError) -> str:
    key = (error.token.keyword or error.token.value).strip("[]").split("][")[-1].replace("-", "_")
    known = [n.lstrip("-").split(".")[-1].replace("-", "_") for a in error.argument_collection for n in a.names]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(dict.fromkeys(known))}."
    return f"{error.token.source}: unknown key `{key}`; {hint}"


def _stop(message: str, code: int) -> None:
    sys.stderr.write(f"demur: {' '.join(message.split())}\n")
    sys.exit(code)
