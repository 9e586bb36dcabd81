"""Tiny models from configs, no network: a byte tokenizer, seven architectures, an SAE with random weights."""

from functools import cache

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from demur.models.load import LanguageModel, wrap
from demur.records import CastSensor, Edit, FeatureSensor, Gate, Intervention, Message, Policy, Push
from demur.sae.sae import SAE, SAEConfig

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 260,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "phi3": lambda: transformers.Phi3Config(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**SMALL),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
}
SENSOR = FeatureSensor(site="0.resid_post", features=(1, 5, 9), weights=(1.0, 0.5, -0.25), bias=0.1)


@cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token per byte, four special ones."""
    specials = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(s, special=True) for s in specials])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


@cache
def lm(architecture: str = "llama", dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)  # fresh weights hardly react to anything; these do
    return wrap(model, tokenizer(), f"tiny-{architecture}")


@cache
def sae(architecture: str = "llama", layer: int = 1, d_sae: int = 64, k: int = 8) -> SAE:
    owner = lm(architecture)
    generator = torch.Generator().manual_seed(layer + 1)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, owner.d_model, generator=generator), dim=1).double()
    config = SAEConfig(
        d_model=owner.d_model, d_sae=d_sae, k=k, site=f"{layer}.resid_post", model=owner.name, model_hash=owner.hash
    )
    bias = 0.1 * torch.randn(owner.d_model, generator=generator).double()
    return SAE(config, W_dec.t().contiguous(), torch.zeros(d_sae).double(), W_dec, bias)


def saes(architecture: str = "llama") -> dict[str, SAE]:
    return {f"{layer}.resid_post": sae(architecture, layer) for layer in (0, 1)}


def policy(
    architecture: str = "llama",
    name: str = "steered",
    positions: str = "reply",
    threshold: float | None = None,
    features: tuple[int, ...] = (3, 7),
    operation: str = "clamp",
    value: float = 4.0,
    keep_error: bool = True,
) -> Policy:
    """Two features edited at block 1; with `threshold`, behind a gate that reads block 0."""
    gate = None
    if threshold is not None:
        gate = Gate(sensor=SENSOR, threshold=threshold)
    edits = tuple(Edit(feature=f, operation=operation, value=value) for f in features)
    act = Intervention(site="1.resid_post", edits=edits, positions=positions, keep_error=keep_error)
    return Policy(name=name, model_hash=lm(architecture).hash, gate=gate, interventions=(act,))


def dense_policy(
    *pushes: Push, positions: str = "reply", threshold: float | None = None, architecture: str = "llama"
) -> Policy:
    """Pushes at block 1 along a vector `v` or a map `m`; with `threshold`, behind CAST's condition at block 0."""
    owner = lm(architecture)
    draw = np.random.default_rng(5)
    arrays = {"v": draw.normal(size=owner.d_model), "m": draw.normal(size=(owner.d_model, owner.d_model)) / 8}
    condition = CastSensor(site="0.resid_post", vector="v")
    gate = Gate(sensor=condition, threshold=threshold) if threshold is not None else None
    act = Intervention(site="1.resid_post", pushes=pushes, positions=positions)
    return Policy(name="dense", model_hash=owner.hash, gate=gate, interventions=(act,)).holding(arrays)


def said(*texts: str) -> list[tuple[Message, ...]]:
    """One-turn conversations."""
    return [(Message(role="user", content=t),) for t in texts]
