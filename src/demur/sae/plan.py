"""What training an SAE will take, before anything is fetched: tokens, arithmetic, memory, disk, and time on a GPU.

Arithmetic only: `plan` takes a model's shape and the settings, `on` a GPU's data sheet. Counts are of floating-point
operations (a multiplication and an addition are two), bytes and seconds. Where a figure depends on the text (how long
sequences are, how many features are dead), it is the most that it can be. Times are estimates: what they assume is in
`UTILISED`, `FED` and `LAUNCH`, and stands in `ASSUMED`.
"""

import math
from collections.abc import Callable

from demur.activations.stream import TOKENS_PER_PASS
from demur.errors import SettingsError
from demur.models.gpus import Gpu
from demur.models.shape import Block, Shape
from demur.records import Record
from demur.sae.finetune import TOKENS_PER_STEP
from demur.sae.quality import ROWS
from demur.sae.rules import RuleName
from demur.sae.settings import SAESettings
from demur.sae.sparse import PIECE_ON_GPU

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
UTILISED = 0.4
"""Share of a GPU's peak arithmetic that is got out of it."""
FED = 0.8
"""Share of its peak memory bandwidth."""
LAUNCH = 1e-3
"""Seconds that starting one block's kernels from Python takes at least."""
LINK = 50
"""GB/s at which GPUs exchange gradients."""
ASSUMED = (
    f"{100 * UTILISED:.0f} % of a GPU's peak arithmetic, {100 * FED:.0f} % of its memory bandwidth, at least "
    f"{1000 * LAUNCH:.0f} ms for each block of each pass, {LINK} GB/s between GPUs; assumed, not measured: expect to be "
    "off by a factor of two"
)
RESERVED = 10**9
"""Bytes of a GPU's memory left to its driver and to fragments."""
PROMPT = 400
"""Tokens of the longest prompt that text is sampled in answer to, about (`activations.sample` takes 1,500 characters)."""
SWEEPS, PRE_SWEEPS = 16, 3
"""How often a step reads or writes all parameters (gradients, Adam, the decoder's norms), and all pre-activations."""
LESS = {
    "sampling": "lower --sampled.batch",
    "training": "lower --batch, --buffer or --d-sae",
    "measuring": "lower --d-sae or --length",
}
"""What to type where a part of the work does not fit."""
PIECES, ROWS_HELD, MATRICES, ENTRY = 3.3, 7, 6, 80
"""What a step holds at once, with every feature dead: so many arrays of a piece's pre-activations, of the batch's width
in the stream, and of the encoder's size; and bytes for each active feature of a token."""
WIDE, NARROW = 3, 4
"""Arrays as wide as a block's widest matrix, and as the stream, that a pass holds at once: as torch allocates them in
gated feed-forward layers (where gate and rows are one matrix, as in Phi-3, two thirds of that)."""


class Text(Record):
    """One source of text."""

    path: str
    tokens: int
    found: bool


class Stage(Record):
    """One part of the work, all of it together."""

    name: str
    about: str
    tokens: int
    passes: int
    """Through the model, or steps of the optimiser."""
    model_flops: int = 0
    """In the model's precision."""
    sae_flops: int = 0
    """In float32."""
    traffic: int = 0
    """Bytes read from the GPU's memory or written to it, weights and caches above all."""
    each: int = 0
    """Those that every GPU reads or writes, however many share the work: the optimiser's."""
    launches: int = 0
    """Blocks run, over all passes."""
    at_most: bool = False
    """It may come to nothing."""
    shared: bool = False
    """Several GPUs share it; what is not is done by the first."""
    exchanged: int = 0
    """Bytes that each GPU gives to the others."""


class Held(Record):
    """What is in memory at once."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


class Plan(Record):
    """What training will take, on any machine."""

    shape: Shape
    dtype: str
    site: str
    """The last, if there are several."""
    saes: int
    """One for each site."""
    d_sae: int
    k: int
    rule: RuleName
    parameters: int
    """Of each SAE."""
    text: tuple[Text, ...]
    sampled: int
    """Tokens sampled from the model."""
    trained: int
    """Tokens that the SAE learns from, at most."""
    held_out: int
    """Tokens that its quality is measured on."""
    steps: int
    stages: tuple[Stage, ...]
    gpus: int
    """Each with the whole model, the SAE and its share of the text."""
    memory: tuple[Held, ...]
    """Of each GPU."""
    disk: dict[str, int]

    @property
    def peak(self) -> Held:
        """The part of the work that holds most."""
        return max(self.memory, key=lambda held: held.total)


class Estimate(Record):
    """A plan on GPUs of one kind."""

    gpu: str
    memory: int
    fits: bool
    seconds: dict[str, float]
    least: float
    """Seconds in all, if what may come to nothing does."""
    most: float
    remarks: tuple[str, ...]


def plan(
    shape: Shape, settings: SAESettings, is_file: Callable[[str], bool] = lambda path: False, gpus: int = 1
) -> Plan:
    """The plan of `train` with these settings on a model of this shape; `is_file` says which text is there.

    Raises:
        SettingsError: the model has no such site, or there is no text.
    """
    run, last = max(((shape.up_to(site), site) for site in settings.site), key=lambda found: len(found[0]))
    sampled = settings.sampled.tokens if settings.sampled else 0
    tokens = sampled + sum(source.tokens for source in settings.text)
    if tokens == 0:
        raise SettingsError("no text to train on; name files under `text`, or `sampled` prompts, in the config.")
    held_out = math.ceil(settings.held_out * tokens)
    trained = tokens - held_out
    steps = math.ceil(trained / settings.batch)
    stages = [
        *([_sampling(shape, settings)] if settings.sampled else []),
        _reading(shape, run, settings, trained),
        *_learning(shape, settings, trained, steps),
        *([_tuning(shape, settings)] if settings.finetune_tokens else []),
        _measuring(shape, run, settings, held_out),
    ]
    return Plan(
        shape=shape,
        dtype=settings.dtype,
        site=last,
        saes=len(settings.site),
        d_sae=settings.d_sae,
        k=settings.k,
        rule=settings.rule,
        parameters=sae_parameters(shape.d_model, settings.d_sae),
        text=tuple(Text(path=s.path, tokens=s.tokens, found=is_file(s.path)) for s in settings.text),
        sampled=sampled,
        trained=trained,
        held_out=held_out,
        steps=steps,
        stages=tuple(stages),
        gpus=gpus,
        memory=tuple(_memory(shape, settings, gpus)),
        disk=_disk(shape.d_model, settings, tokens),
    )


def on(made: Plan, gpu: Gpu) -> Estimate:
    """How long a plan takes on a kind of GPU, and whether it fits there.

    Raises:
        SettingsError: the plan is in float64, whose speed the table does not have.
    """
    if made.dtype == "float64":
        raise SettingsError("no GPU's speed in float64 is in the table; plan with --dtype float32 or bfloat16.")
    slow = made.dtype == "bfloat16" and not gpu.bfloat16
    rate = gpu.single if slow or made.dtype == "float32" else gpu.half
    seconds = {}
    for stage in made.stages:
        busy = (stage.model_flops / rate + stage.sae_flops / gpu.single) / (UTILISED * 1e12)
        busy += stage.traffic / (FED * gpu.bandwidth * 1e9)
        seconds[stage.name] = max(busy, stage.launches * LAUNCH) / (made.gpus if stage.shared else 1)
        # A ring passes each byte on twice.
        seconds[stage.name] += stage.each / (FED * gpu.bandwidth * 1e9)
        seconds[stage.name] += stage.exchanged * 2 * (made.gpus - 1) / made.gpus / (LINK * 1e9)
    total = sum(seconds.values())
    fits = made.peak.total + RESERVED <= gpu.memory * 1e9
    remarks = []
    if not fits:
        short = (made.peak.total + RESERVED) / 1e9 - gpu.memory
        alone = made.peak.parts["model"] > gpu.memory * 1e9
        mend = "the model alone is larger, and is not split" if alone else LESS[made.peak.name]
        remarks.append(f"{made.peak.name} needs {short:.1f} GB more: {mend}")
    if slow:
        remarks.append("no bfloat16: give --dtype float16")
    return Estimate(
        gpu=gpu.name,
        memory=int(gpu.memory * 1e9),
        fits=fits,
        seconds=seconds,
        least=total - sum(seconds[s.name] for s in made.stages if s.at_most),
        most=total,
        remarks=tuple(remarks),
    )


def sae_parameters(d_model: int, d_sae: int) -> int:
    """Weights and biases of an encoder and a decoder."""
    return 2 * d_model * d_sae + d_sae + d_model


def forward_flops(shape: Shape, blocks: tuple[Block, ...], tokens: int, length: int) -> int:
    """Some blocks on tokens in sequences of a length: every matrix once per token, and attention over all pairs.

    Attention's two products (scores, and their mixture of values) are counted for the whole square, as
    `torch.utils.flop_counter` counts them; kernels that leave out the future need half.
    """
    return tokens * sum(2 * b.matrices + 4 * length * shape.attention for b in blocks)


def step_flops(d_model: int, d_sae: int, k: int, tokens: int) -> int:
    """The SAE forward and backward on a batch: the encoder's product; then k rows of each matrix, twice each."""
    return tokens * (2 * d_model * d_sae + 8 * d_model * k)


def state_bytes(d_model: int, d_sae: int) -> int:
    """What the trainer holds in float32: parameters, their gradients, Adam's two moments."""
    return 4 * 4 * sae_parameters(d_model, d_sae)


def _sampling(shape: Shape, settings: SAESettings) -> Stage:
    how = settings.sampled
    assert how is not None
    # A token of each row at a time; rows end early about as often as prompts add to them.
    passes, width = math.ceil(how.tokens / how.batch), BYTES[settings.dtype]
    cache = how.batch * how.max_new_tokens * shape.cached * len(shape.blocks) * width
    return Stage(
        name="sampling",
        about="text from the model itself",
        tokens=how.tokens,
        passes=passes,
        model_flops=forward_flops(shape, shape.blocks, how.tokens, how.max_new_tokens)
        + 2 * how.tokens * shape.d_model * shape.vocab,
        # transformers' cache is read for attention, and copied to make room for the new token.
        traffic=passes * (shape.parameters * width + 3 * cache),
        launches=passes * len(shape.blocks),
    )


def _reading(shape: Shape, run: tuple[Block, ...], settings: SAESettings, tokens: int) -> Stage:
    passes = math.ceil(tokens / TOKENS_PER_PASS)
    return Stage(
        name="reading",
        about=f"activations; blocks 0 to {len(run) - 1} are run, the others and the head are not",
        tokens=tokens,
        passes=passes,
        model_flops=forward_flops(shape, run, tokens, settings.length),
        traffic=passes * sum(b.parameters for b in run) * BYTES[settings.dtype],
        launches=passes * len(run),
        shared=True,
    )


def _learning(shape: Shape, settings: SAESettings, tokens: int, steps: int) -> list[Stage]:
    d_model, d_sae, saes = shape.d_model, settings.d_sae, len(settings.site)
    learning = Stage(
        name="learning",
        about="the SAE, forward and backward, and Adam",
        tokens=tokens,
        passes=steps,
        sae_flops=saes * step_flops(d_model, d_sae, settings.k, tokens),
        traffic=saes * 4 * tokens * PRE_SWEEPS * d_sae,
        each=saes * 4 * steps * SWEEPS * sae_parameters(d_model, d_sae),
        shared=True,
        exchanged=saes * 4 * steps * sae_parameters(d_model, d_sae),
    )
    if settings.dead_loss == 0:
        return [learning]
    # Five dense products with the dead features.
    dead = d_sae // 10
    reviving = Stage(
        name="reviving",
        about=f"the dead-feature loss, if a tenth of the features ({dead:,}) were dead all the time",
        tokens=tokens,
        passes=steps,
        sae_flops=saes * tokens * 10 * d_model * dead,
        traffic=saes * 4 * 8 * tokens * dead,
        at_most=True,
        shared=True,
    )
    return [learning, reviving]


def _tuning(shape: Shape, settings: SAESettings) -> Stage:
    # The whole model forward twice, and backward through the spliced one, which costs as much again (its weights have no
    # gradients); the SAE forward and backward.
    saes, tokens = len(settings.site), settings.finetune_tokens
    passes = saes * math.ceil(tokens / TOKENS_PER_STEP)
    whole = forward_flops(shape, shape.blocks, tokens, settings.length) + 2 * tokens * shape.d_model * shape.vocab
    return Stage(
        name="fine-tuning",
        about="the SAE through the model",
        tokens=saes * tokens,
        passes=passes,
        model_flops=saes * 3 * whole,
        # autograd makes the gradient of the encoder's product in full.
        sae_flops=saes
        * (step_flops(shape.d_model, settings.d_sae, settings.k, tokens) + 2 * tokens * shape.d_model * settings.d_sae),
        traffic=3 * passes * shape.parameters * BYTES[settings.dtype]
        + 4 * SWEEPS * passes * sae_parameters(shape.d_model, settings.d_sae),
        launches=3 * passes * len(shape.blocks),
    )


def _measuring(shape: Shape, run: tuple[Block, ...], settings: SAESettings, tokens: int) -> Stage:
    # Activations are read once; the whole model runs thrice: as it is, with the reconstruction, with zeros.
    groups = len(settings.site) * math.ceil(tokens / (ROWS * settings.length))  # each SAE by itself
    whole = forward_flops(shape, shape.blocks, tokens, settings.length) + 2 * tokens * shape.d_model * shape.vocab
    return Stage(
        name="measuring",
        about="quality on held-out text",
        tokens=tokens,
        passes=4 * groups,
        model_flops=len(settings.site) * (forward_flops(shape, run, tokens, settings.length) + 3 * whole),
        sae_flops=len(settings.site) * 4 * tokens * shape.d_model * settings.d_sae,
        traffic=3 * groups * shape.parameters * BYTES[settings.dtype],
        launches=groups * (len(run) + 3 * len(shape.blocks)),
    )


def _memory(shape: Shape, settings: SAESettings, gpus: int) -> list[Held]:
    d_model, d_sae, width = shape.d_model, settings.d_sae, BYTES[settings.dtype]
    weights = {"model": shape.parameters * width}

    def passing(tokens: int) -> int:
        return tokens * width * (WIDE * max(b.widest for b in shape.blocks) + NARROW * d_model)

    found = []
    if settings.sampled:
        rows = settings.sampled.batch
        cache = rows * (PROMPT + settings.sampled.max_new_tokens) * shape.cached * len(shape.blocks) * width
        found.append(Held(name="sampling", parts=weights | {"KV cache": cache, "a pass": passing(rows * PROMPT)}))
    saes, batch = len(settings.site), math.ceil(settings.batch / gpus)
    piece = min(batch, max(64, PIECE_ON_GPU // d_sae)) * d_sae
    training = {
        "SAE, gradients, Adam": saes * state_bytes(d_model, d_sae),
        # Twice: it is shuffled from one copy into another.
        "shuffle buffer": saes * 2 * 4 * (settings.buffer + TOKENS_PER_PASS) * d_model,
        "a pass": passing(TOKENS_PER_PASS),
        "a step": int(4 * (PIECES * piece + (ROWS_HELD * batch + MATRICES * d_sae) * d_model))
        + ENTRY * batch * settings.k,
    }
    found.append(Held(name="training", parts=weights | training))
    tokens = ROWS * settings.length
    measuring = {
        "SAE": 4 * sae_parameters(d_model, d_sae),
        "a pass": passing(tokens),
        "logits": tokens * shape.vocab * (width + 4 + 4),  # as they come, in float32, and their softmax
    }
    found.append(Held(name="measuring", parts=weights | measuring))
    return found


def _disk(d_model: int, settings: SAESettings, tokens: int) -> dict[str, int]:
    parameters, saes = sae_parameters(d_model, settings.d_sae), len(settings.site)
    kept = settings.buffer + TOKENS_PER_PASS
    found = {
        "sae/sae.safetensors": saes * BYTES[settings.save_dtype] * parameters,
        # Parameters and Adam's moments, how long each feature was silent, and the buffer as full as it can be.
        "checkpoint.safetensors": saes * (12 * parameters + 8 * settings.d_sae + 4 * kept * d_model),
        "text.safetensors": 4 * tokens,  # and a little for where sequences begin
    }
    return found | ({settings.cache: saes * 4 * tokens * d_model} if settings.cache else {})
