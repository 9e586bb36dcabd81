"""A tiny model that refuses along one direction, and an SAE written by hand in which we know what each feature is.

Block 0 attends evenly to all tokens and writes how many of them are `!` along REFUSAL. Block 1's MLP writes along it
too, where LEFT and RIGHT are both there: silu(left) · right. The head says `N` when there is much of it, else `Y`.
"""

import random
from collections.abc import Iterator, Sequence

import torch
import transformers

from demur.evaluation.judging.rules import Rules
from demur.features.effect import Bench
from demur.models.load import LanguageModel, wrap
from demur.records import Prompt, PromptSet, Transcript, Verdict
from demur.sae.sae import SAE, SAEConfig
from tests import tiny

SITE = "0.resid_post"
REFUSAL, CONSTANT, HARM, LEFT, RIGHT, MARKS, OTHER = range(7)
WORDS = ["tea", "how", "sky", "boat", "why", "sum", "old", "red", "walk", "music"]
WRITES, TWIN, HALF, OTHER_HALF, DENSE, TEMPLATE, AGAINST = range(7)
"""Features: it writes refusal; it does so too; they do together; it is on everywhere; on the template; the opposite."""
D_SAE = 24


def model() -> LanguageModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{**tiny.SMALL, "hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    )
    made = transformers.AutoModelForCausalLM.from_config(config)
    token = tiny.tokenizer().convert_tokens_to_ids
    with torch.no_grad():
        for block in made.model.layers:
            for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                part.weight.zero_()
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        words = made.model.embed_tokens.weight
        words.normal_(0, 0.15)
        words[:, : OTHER + 1] = 0
        words[:, CONSTANT] = 1
        words[token("!"), HARM] = 1
        words[[token("<|im_start|>"), token("<|im_end|>")], MARKS] = 1
        attention, mlp = made.model.layers[0].self_attn, made.model.layers[1].mlp
        attention.v_proj.weight[0, HARM] = 1
        attention.o_proj.weight[REFUSAL, 0] = 5
        mlp.gate_proj.weight[0], mlp.up_proj.weight[0] = 0, 0
        mlp.gate_proj.weight[0, LEFT], mlp.up_proj.weight[0, RIGHT], mlp.down_proj.weight[REFUSAL, 0] = 2, 2, 1
        made.lm_head.weight.zero_()
        made.lm_head.weight[token("N"), REFUSAL] = 10
        made.lm_head.weight[token("Y"), CONSTANT] = 5
    return wrap(made, tiny.tokenizer(), "by hand")


def sae(lm: LanguageModel) -> SAE:
    generator = torch.Generator().manual_seed(3)
    W_dec = torch.zeros(D_SAE, lm.d_model)
    W_dec[:, OTHER + 1 :] = torch.randn(D_SAE, lm.d_model - OTHER - 1, generator=generator)
    W_dec[: AGAINST + 1] = 0
    W_dec[WRITES, REFUSAL] = 1
    W_dec[TWIN, [REFUSAL, OTHER]] = torch.tensor([1.0, 0.2])
    W_dec[HALF, LEFT], W_dec[OTHER_HALF, RIGHT] = 1, 1
    W_dec[DENSE, [CONSTANT, REFUSAL]] = torch.tensor([0.5, 1.0])
    W_dec[TEMPLATE, [MARKS, REFUSAL]] = torch.tensor([0.5, 1.0])
    W_dec[AGAINST, REFUSAL] = -1
    W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    W_enc = W_dec.T.clone()
    for feature, reads in ((DENSE, CONSTANT), (TEMPLATE, MARKS)):
        W_enc[:, feature] = 0
        W_enc[reads, feature] = 1
    W_enc[:, AGAINST] = 0
    config = SAEConfig(d_model=lm.d_model, d_sae=D_SAE, rule="relu", site=SITE, model=lm.name, model_hash=lm.hash)
    bias = torch.full((D_SAE,), -0.5)  # above what words have in any direction
    bias[: AGAINST + 1] = -0.05
    return SAE(config, W_enc, bias, W_dec, torch.zeros(lm.d_model))


class OneLetter(Rules):
    """The model refuses in one letter."""

    def judge(self, transcripts: Sequence[Transcript]) -> Iterator[Verdict]:
        for transcript, verdict in zip(transcripts, super().judge(transcripts), strict=True):
            outcome = "refused" if transcript.reply.startswith("N") else "complied"
            yield verdict.model_copy(update={"outcome": outcome})


def bench() -> Bench:
    lm = model()
    return Bench(lm, sae(lm), judge=OneLetter())


def prompts(n: int, seed: int = 0) -> PromptSet:
    """Harmful ones, every other so loud that the plain model refuses, and harmless ones."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        for label in ("harmful", "benign"):
            words = rng.choices(WORDS, k=rng.randint(3, 6))
            loud = label == "harmful" and i % 2
            text = " ".join(w + "!" * rng.randint(4, 8) if loud else w for w in words)
            rows.append(
                Prompt(id=f"{label}-{seed}-{i}", prompt=text, label=label, source="ours", category=WORDS[i % 3])
            )
    return PromptSet(name="ours", rows=tuple(rows))


def starts() -> list[list[int]]:
    """How a refusal begins."""
    return [[tiny.tokenizer().convert_tokens_to_ids("N")]]
