"""What reads harm off a reply as it is written, for the gate on the reply."""

from collections.abc import Sequence

from demur.features.effect import Bench, answers
from demur.features.optimise import REPLY
from demur.features.reading import read_said
from demur.features.sensors import fit
from demur.features.settings import FindSettings
from demur.records import Continuation, FeatureSensor, Prompt, Record
from demur.steering.policies import NONE


class Late(Record):
    """What was found, if anything."""

    gate: Continuation | None = None


def read_late(bench: Bench, rows: Sequence[Prompt], settings: FindSettings) -> Continuation | None:
    """A few features of the plain model's replies: those that comply with harmful prompts against those to benign ones.

    Fitted to means over the tokens, so that a token's score is its share of a reply's. None where the model complies with
    no harmful prompt. Thresholds are `demur calibrate`'s to set.
    """
    found = answers(bench, [(NONE, row) for row in rows], REPLY, "answering plainly")
    said = [bench.lm.tokenizer(a.text, add_special_tokens=False)["input_ids"] for a in found]
    kept = [
        i
        for i, (row, a) in enumerate(zip(rows, found, strict=True))
        # Broken text is of neither sort: with it on one side alone, that is what would be told apart.
        if said[i] and a.outcome != "degenerate" and (row.label == "benign" or a.outcome == "complied")
    ]
    harmful = [rows[i].label == "harmful" for i in kept]
    if len(set(harmful)) < 2:
        return None
    talks = [rows[i].conversation for i in kept]
    pooled = read_said(bench.lm, bench.sae, talks, [said[i] for i in kept], ["mean"], late=True)["mean"]
    reading = fit(pooled, harmful, [f"{rows[i].source} {rows[i].kind}" for i in kept], settings.sensors)
    sensor = FeatureSensor(
        name="harm in the reply",
        site=bench.sae.config.site,
        features=tuple(reading.features),
        weights=tuple(reading.weights),
        bias=reading.bias,
        pooling="mean",
    )
    return Continuation(sensor=sensor, opens=0.0, closes=0.0)
