"""A line that says what a feature seems to mean: by a rule from what is known of it, or by a language model that reads
the same.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from demur.evaluation import endpoint
from demur.evaluation.endpoint import Question, Unanswered
from demur.records import Feature

KEY = "DEMUR_NAMER_KEY"
NEAR = 4
"""Words on either side of the token on which a feature is strongest that count as its own."""
OFTEN, LIFTED = 0.25, 2.0
"""A kind of prompt is named if a feature fires on this share of its prompts, and on so many times its usual share."""
LONGEST = 80
"""Characters of a name."""
ASKED = (
    "You name features of a language model. A feature is a direction in the model's activations. You are shown passages "
    "in which it is strongest, the strongest token between « and »; words that become more likely as the first of a "
    "reply when it is raised; and kinds of requests on which it is active. Answer with what it stands for, in at most "
    "eight plain words, without quotation marks and without any explanation."
)

K = TypeVar("K", bound=Hashable)


def words_near(context: str) -> list[str]:
    """The words around the marked token of a context, its own twice, in small letters."""
    before, _, rest = context.partition("«")
    peak, _, after = rest.partition("»")
    # A token may be a part of a word; what it is part of is what is read.
    start = "" if peak[:1].isspace() else re.findall(r"\w*$", before)[0]
    end = re.findall(r"^\w*", after)[0]
    own = re.findall(r"[^\W\d_]+", f"{start}{peak}{end}")
    words = re.findall(r"[^\W\d_]+", before.removesuffix(start))[-NEAR:] + 2 * own
    words += re.findall(r"[^\W\d_]+", after.removeprefix(end))[:NEAR]
    return [w.lower() for w in words if len(w) > 1]


def distinctive(contexts: Mapping[K, Sequence[str]], most: int = 5) -> dict[K, list[str]]:
    """For each class of contexts the words that tell it from the others, best first.

    Class-based TF-IDF, `tf · log(1 + A / f)` with A the mean number of words of a class and f a word's count over all
    (Grootendorst, arXiv 2203.05794, section 3.3), of words beside the marked token.
    """
    counts = {
        name: Counter(w for text in texts for w in words_near(text) if w not in ENGLISH_STOP_WORDS)
        for name, texts in contexts.items()
    }
    total = sum(counts.values(), Counter())
    mean = sum(total.values()) / max(1, len(counts))
    found = {}
    for name, count in counts.items():
        size = max(1, sum(count.values()))
        weights = {w: n / size * math.log1p(mean / total[w]) for w, n in count.items()}
        found[name] = sorted(weights, key=lambda w, by=weights: (-by[w], w))[:most]
    return found


def plain_name(feature: Feature, words: Sequence[str], usual: float) -> str:
    """A name by rule: what it writes, if it is an actuator; what it is on; the kind of prompt that it is on most.

    `usual` is the share of prompts on which it fires, mean over all kinds.
    """
    parts = []
    written = list(dict.fromkeys(w for w in feature.evidence.raised if re.search(r"\w", w)))[:3]
    if feature.role == "actuator" and written:
        parts.append(f"writes {', '.join(written)}")
    if words:
        parts.append(f"on {', '.join(words[:3])}")
    lifted = max(OFTEN, LIFTED * usual)
    kind = next((k.replace("_", " ") for k, rate in feature.meaning.kinds.items() if rate >= lifted), "")
    name = "; ".join(parts)
    return _line(f"{name} ({kind})" if name and kind else name or kind)


def names_by_model(features: Sequence[Feature], url: str, model: str, timeout: float = 60.0) -> dict[int, str]:
    """Names by a language model behind an OpenAI-compatible endpoint; a feature it says nothing of is left out.

    Raises:
        SettingsError: the address is none.
        EndpointError: nobody answers there, or we are turned away.
    """
    address = endpoint.checked(url, "--namer")
    asked = endpoint.Endpoint(
        "the namer", address, model, endpoint.key_in(KEY), timeout, forms=({"temperature": 0}, {})
    )
    found = {}
    for feature, said in zip(features, asked.answers(_question(f) for f in features), strict=True):
        if not isinstance(said, Unanswered) and (name := _line(said)):
            found[feature.id] = name
    return found


def _question(feature: Feature) -> Question:
    seen = [f"Role: {'raised to write refusals' if feature.role == 'actuator' else 'read, to see harm'}"]
    seen += ["Passages:", *(f"- {' '.join(c.split())}" for c in feature.evidence.contexts)]
    seen.append(f"More likely first words: {', '.join(w for w in feature.evidence.raised if w)}")
    kinds = ", ".join(f"{kind.replace('_', ' ')} {rate:.0%}" for kind, rate in feature.meaning.kinds.items())
    seen.append(f"Active on: {kinds or 'none of the kinds looked at'}")
    return [{"role": "system", "content": ASKED}, {"role": "user", "content": "\n".join(seen)}]


def _line(said: str) -> str:
    # The first line that says something, without quotation marks or a full stop around it.
    line = next((text for text in (t.strip(" \t\"'“”.*#") for t in said.splitlines()) if text), "")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1].rstrip()}…"
