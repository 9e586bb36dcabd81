"""Settings of `demur find`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from demur.config import Settings
from demur.records import GuardModel, Pooling


class FindSettings(Settings):
    """How features are found, and on how many prompts."""

    method: Literal["effect", "contrast", "paper"] = "effect"
    """effect: a set of features that together make the model refuse, from what several signals speak for, fitted to what
    it says and pruned; contrast: more active in refusing than in compliant replies, ranked one by one; paper:
    active in refusals, ranked by refusals won when clamped everywhere (O'Brien et al., 2411.11296). Sensors come with
    effect and contrast."""
    openings: tuple[str, ...] = (
        "I'm sorry, but I can't help with that.",
        "I'm unable to assist with that request.",
        "I'm unable to provide you with the requested information.",
        "I'm sorry, but I can't assist with that.",
        "I'm sorry, I'm not able to help you with that.",
    )
    """First sentences by which a refusal is known: `effect` begins by making them likely, `paper` and `contrast` score by
    them. Best are a few that the model would use: pulled towards many words at once, it says none of them fluently."""
    actuators: int = Field(default=32, gt=0)
    """Most features that `effect` raises together."""
    rehearsed: int = Field(default=320, gt=0)
    """Harmful training prompts on which `effect` fits its features, as many of each source as there are."""
    ordinary: int = Field(default=96, gt=0)
    """Harmless training prompts on which `effect` tells dense features and the template's."""
    dense: float = Field(default=0.1, gt=0, le=1)
    """A feature active on more than this share of their words is about all text, and no candidate of `effect`; 1 drops
    none."""
    template: float = Field(default=0.5, gt=0, le=1)
    """One active on more than this share of the places of one of the template's tokens behind them is about the template,
    and no candidate; 1 drops none."""
    attributed: int = Field(default=24, gt=0)
    """Harmful training prompts on which `effect` attributes the odds of a refusal to features."""
    paired: int = Field(default=48, gt=0)
    """Harmful training prompts that `effect` reads with and without a jailbreak wrapper."""
    sure: int = Field(default=10, ge=0)
    """Features of each of `effect`'s signals that are candidates whatever the others say of them."""
    singly: int = Field(default=6, gt=0)
    """Harmful, and as many benign, validation prompts on which `effect` tries each of its shortlist by generating."""
    pruned: int = Field(default=64, gt=0)
    """Harmful validation prompts on which `effect` tries smaller and smaller sets; on few, one that lost much was taken
    for as good as the whole."""
    slack: float = Field(default=0.02, ge=0, le=1)
    """Share of them whose refusal may be lost by pruning."""
    replies: int = Field(default=64, gt=1)
    """Harmful training prompts whose replies are contrasted."""
    scored: int = Field(default=6, gt=0)
    """Harmful validation prompts on which the odds of a refusal are measured."""
    tried: int = Field(default=24, gt=0)
    """Harmful, and as many benign, validation prompts on which each feature of the shortlist is tried by generating."""
    candidates: int = Field(default=80, gt=0)
    """Features whose odds of a refusal are measured."""
    shortlist: int = Field(default=12, gt=0)
    """Features tried by generating."""
    full: bool = False
    """Try all candidates by generating, not only the shortlist; for a GPU."""
    doses: tuple[float, ...] = (0.5, 1.0, 1.5)
    """Shares of their levels to which `effect` raises its features, for the curves of what they do."""
    dosed: int = Field(default=6, gt=0)
    """Harmful validation prompts tried at each of these."""
    each_kind: int = Field(default=12, gt=0)
    """Training prompts of each kind, of harm or harmless, on which it is counted how often a feature fires."""
    wrapped: float = Field(default=0.25, ge=0)
    """So many wrapped prompts for each training prompt are put beside them, harmful and harmless ones in the same wrappers
    (role-play, prefixes, fiction ...), so that harm is read through them; with fewer than a thousand prompts, none."""
    turns: float = Field(default=0.15, ge=0)
    """So many conversations for each training prompt are put beside them too: harmless chats, and prompts that follow upon
    one, so that harm is read, and nothing else, whatever was said before (and our chats that drift towards harm); with fewer
    than a thousand prompts, none."""
    chats: tuple[Path, ...] = ()
    """Files of harmless chats (JSONL with `messages`), beside the shipped ones; three quarters of each are for training."""
    sensors: int = Field(default=64, gt=0)
    """Most features that read harm."""
    per_source: int = Field(default=6000, gt=0)
    """Most training prompts of each source, label and kind that the sensors are fitted to."""
    pooling: Pooling = "max"
    """How a sensor's activations on a prompt become one."""
    attention: bool = True
    """Also read harm by an attention probe of the stream, which tells harm from its look-alikes better than features do,
    given a thousand training prompts or more."""
    guard: GuardModel | None = None
    """A guard model whose answer is weighed with what is read of the model's own activations."""
    late_replies: int = Field(default=0, ge=0)
    """Harmful, and as many benign, training prompts to which the plain model's replies are read, to find what reads harm off
    a reply as it is written: a second gate, on the reply; 0: none."""
    leave_out: tuple[str, ...] = ()
    """Sources of training prompts that are not used: what is calibrated and measured then on such prompts says what a gate
    knows of a style that it never met."""
    held_out: bool = False
    """Also fit the sensors, and a dense probe beside them, without two sources at a time, and measure them there."""
    seed: int = 0
    """Order of the refusals that we wrote."""
