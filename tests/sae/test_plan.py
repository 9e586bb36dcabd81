"""The plan of a training: against figures worked out by hand, torch's own counters, and what torch really allocates."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from demur.activations.harvest import read
from demur.activations.sample import SampleSettings
from demur.activations.stream import TOKENS_PER_PASS
from demur.cli import main
from demur.data.corpus import Source
from demur.errors import FileError, ModelError, SettingsError
from demur.models.gpus import GPUS, Gpu, find_gpu
from demur.models.load import wrap
from demur.models.shape import measured, shape
from demur.sae import sparse
from demur.sae.plan import Plan, forward_flops, on, plan, sae_parameters, state_bytes, step_flops
from demur.sae.settings import SAESettings
from demur.sae.trainer import Trainer
from tests import tiny

PHI_3 = Path(__file__).parents[2] / "configs" / "phi-3-mini.json"
TEXT = (Source(path="a.jsonl", tokens=600_000), Source(path="b.jsonl", tokens=400_000))
SETTINGS = SAESettings(
    model="owner/phi-3",
    dtype="bfloat16",
    site=("6.resid_post",),
    d_sae=24_576,
    k=32,
    text=TEXT,
    batch=2048,
    dead_loss=0,
)


def phi_3(settings: SAESettings = SETTINGS) -> Plan:
    return plan(shape("owner/phi-3", PHI_3), settings, lambda path: path == "a.jsonl")


def test_phi_3_by_hand():
    made = phi_3()
    block = 3072 * (9216 + 3072 + 16_384) + 8192 * 3072  # qkv, o, gate with up; down
    assert made.shape.parameters == 32 * (block + 2 * 3072) + 2 * 32_064 * 3072 + 3072 == 3_821_079_552
    assert [b.matrices for b in made.shape.blocks] == [block] * 32
    assert made.parameters == 2 * 3072 * 24_576 + 24_576 + 3072 == 151_022_592
    assert (made.trained, made.held_out, made.steps) == (980_000, 20_000, 479)
    reading, learning, measuring = made.stages
    # Seven blocks; attention's two products over 256 tokens in 3,072 dimensions.
    assert reading.model_flops == 980_000 * 7 * (2 * block + 2 * 2 * 256 * 3072)
    assert reading.launches == reading.passes * 7 == 479 * 7
    assert learning.sae_flops == 980_000 * 3072 * (2 * 24_576 + 8 * 32)
    whole = 32 * (2 * block + 4 * 256 * 3072) + 2 * 3072 * 32_064
    assert measuring.model_flops == 20_000 * (3 * whole + 7 * (2 * block + 4 * 256 * 3072))
    training = next(h for h in made.memory if h.name == "training").parts
    assert training["model"] == 2 * 3_821_079_552
    assert training["SAE, gradients, Adam"] == 16 * 151_022_592
    assert training["shuffle buffer"] == 2 * (65_536 + 2048) * 3072 * 4
    assert made.disk["sae/sae.safetensors"] == 4 * 151_022_592
    assert [t.found for t in made.text] == [True, False]


def test_time_on_a_gpu_by_hand():
    made = phi_3()
    gpu = Gpu("ours", memory=80, half=100, single=10, bandwidth=1000)
    reading, learning, _ = made.stages
    found = on(made, gpu)
    assert found.seconds["reading"] == pytest.approx(reading.model_flops / 40e12 + reading.traffic / 0.8e12)
    moved = learning.traffic + learning.each
    assert found.seconds["learning"] == pytest.approx(learning.sae_flops / 4e12 + moved / 0.8e12)
    assert found.most == found.least == pytest.approx(sum(found.seconds.values()))
    # However fast the chip, Python has to start every block.
    fast = on(made, gpu._replace(half=1e9, bandwidth=1e9))
    assert fast.seconds["reading"] == reading.launches * 1e-3
    # Full precision is slower by the ratio of the two rates.
    whole = phi_3(SETTINGS.model_copy(update={"dtype": "float32"}))
    slow = on(whole, gpu._replace(bandwidth=1e9)).seconds["reading"]
    assert slow == pytest.approx(10 * on(made, gpu._replace(bandwidth=1e9)).seconds["reading"], rel=1e-3)


def test_several_gpus_share_what_can_be_shared_and_say_what_does_not_fit():
    one, many = phi_3(), plan(shape("owner/phi-3", PHI_3), SETTINGS, gpus=8)
    gpu = Gpu("ours", memory=80, half=100, single=10, bandwidth=1000)
    alone, shared = on(one, gpu).seconds, on(many, gpu).seconds
    assert shared["reading"] == pytest.approx(alone["reading"] / 8)
    learning = one.stages[1]
    own = learning.each / 0.8e12  # every GPU's own optimiser; then gradients, each passed on twice around the ring
    exchanged = 4 * 479 * 151_022_592 * 2 * 7 / 8 / 50e9
    assert shared["learning"] == pytest.approx((alone["learning"] - own) / 8 + own + exchanged)
    assert shared["measuring"] == alone["measuring"]
    steps = [next(h for h in made.memory if h.name == "training").parts["a step"] for made in (one, many)]
    assert steps[1] < steps[0]
    large = on(plan(shape("owner/llama", PHI_3.with_name("llama-70b.json")), SETTINGS), find_gpu("H100"))
    assert "the model alone is larger, and is not split" in large.remarks[0]


def test_several_sites_cost_their_saes_and_one_reading():
    one, two = phi_3(), phi_3(SETTINGS.model_copy(update={"site": ("6.resid_post", "4.resid_post")}))
    assert two.stages[0] == one.stages[0]
    assert two.stages[1].sae_flops == 2 * one.stages[1].sae_flops
    parts = [next(h for h in made.memory if h.name == "training").parts for made in (one, two)]
    assert parts[1]["SAE, gradients, Adam"] == 2 * parts[0]["SAE, gradients, Adam"]


def test_the_dead_feature_loss_is_counted_apart():
    made = phi_3(SETTINGS.model_copy(update={"dead_loss": 1 / 32}))
    estimate = on(made, find_gpu("H100"))
    assert [s.name for s in made.stages if s.at_most] == ["reviving"]
    assert estimate.most - estimate.least == pytest.approx(estimate.seconds["reviving"])


def test_fine_tuning_is_counted_and_every_sae_is_measured_by_itself():
    alone = {s.name: s for s in phi_3(SETTINGS).stages}
    tuned = {s.name: s for s in phi_3(SETTINGS.model_copy(update={"finetune_tokens": 2**20})).stages}
    assert tuned.keys() - alone.keys() == {"fine-tuning"}
    assert tuned["fine-tuning"].passes == 2**10
    both = {s.name: s for s in phi_3(SETTINGS.model_copy(update={"site": ("5.resid_post", "6.resid_post")})).stages}
    for figure in ("passes", "launches", "traffic"):
        assert getattr(both["measuring"], figure) > 1.9 * getattr(alone["measuring"], figure)


def test_what_does_not_fit_says_so_and_what_to_lower():
    wide = phi_3(SETTINGS.model_copy(update={"d_sae": 2**20}))
    found = on(wide, find_gpu("L4"))
    assert not found.fits
    assert "training needs" in found.remarks[0]
    assert "--d-sae" in found.remarks[0]
    asked = SampleSettings(prompts=("a.jsonl",), tokens=1000, batch=1024)
    found = on(phi_3(SETTINGS.model_copy(update={"sampled": asked})), find_gpu("H100"))
    assert "--sampled.batch" in found.remarks[0]
    assert on(phi_3(), find_gpu("H100")).fits
    assert "float16" in on(phi_3(), find_gpu("T4")).remarks[-1]


def test_gpus_are_found_by_any_spelling_and_a_wrong_one_names_the_nearest():
    assert find_gpu("nvidia a100 80g") == find_gpu("A100-80G")
    assert find_gpu("GeForce RTX4090").name == "RTX 4090"
    assert [find_gpu(g.name) for g in GPUS] == list(GPUS)
    with pytest.raises(SettingsError, match="did you mean L40S"):
        find_gpu("L40")
    with pytest.raises(SettingsError, match=r"Known are H200.*T4"):
        find_gpu("abacus")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_forward_flops_are_those_that_torch_counts(architecture):
    # Eager attention: the counter knows no fused kernel of the CPU.
    model = transformers.AutoModelForCausalLM.from_config(
        tiny.ARCHITECTURES[architecture](), attn_implementation="eager"
    )
    lm = wrap(model, tiny.tokenizer(), architecture)
    made = measured(model, architecture)
    assert made.parameters == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        lm.logits(torch.randint(4, 250, (3, 40)))
    found = counter.get_flop_counts()
    in_blocks = [sum(sum(f.values()) for k, f in found.items() if k.endswith(f".{i}")) for i in range(3)]
    assert [forward_flops(made, made.blocks[i : i + 1], 120, 40) for i in range(3)] == in_blocks
    with FlopCounterMode(display=False) as counter:
        read(lm, ["1.resid_post"], torch.randint(4, 250, (3, 40)))
    # What comes before the blocks (rotary angles) is small, and what lies behind the site is not run.
    assert counter.get_total_flops() == pytest.approx(
        forward_flops(made, made.up_to("1.resid_post"), 120, 40), rel=0.01
    )


def test_flops_of_a_step_are_those_that_torch_counts(monkeypatch):
    monkeypatch.setattr(sparse, "_onednn_linear", lambda: None)  # which torch does not count
    settings = SAESettings(d_sae=96, k=6, batch=128)
    trainer = Trainer(32, settings, steps=10)
    x = torch.randn(128, 32)
    trainer.start(x)
    with FlopCounterMode(display=False) as counter:
        trainer.step(x)
    # It counts dense products: the k rows of each matrix that a token touches are none.
    gathered = 8 * 32 * 6 * 128
    of_the_bias = 2 * 96 * 32  # once a step, whatever the batch
    assert counter.get_total_flops() == step_flops(32, 96, 6, 128) - gathered + of_the_bias


def strided(t: object) -> bool:
    return isinstance(t, torch.Tensor) and t.layout == torch.strided


class Live(TorchDispatchMode):
    """Follows the bytes of every tensor that an operation makes until nobody holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if strided(t)}
        for t in tree_leaves(out):
            if strided(t) and t.untyped_storage()._cdata not in given:
                self.held[t.untyped_storage()._cdata] = (
                    StorageWeakRef(t.untyped_storage()),
                    t.untyped_storage().nbytes(),
                )
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return out


def test_the_trainer_holds_what_the_plan_says():
    trainer = Trainer(64, SAESettings(d_sae=1024, k=8, batch=1024), steps=10)
    x = torch.randn(1024, 64)
    trainer.start(x)
    trainer.step(x)
    tensors = [
        *trainer.weights.values(),
        *(w.grad for w in trainer.weights.values()),
        *(s[key] for s in trainer.optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")),
    ]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == state_bytes(64, 1024)
    assert sum(w.numel() for w in trainer.weights.values()) == sae_parameters(64, 1024)


def held(settings: SAESettings, model: torch.nn.Module, stage: str) -> dict[str, int]:
    made = plan(measured(model, "tiny"), settings.model_copy(update={"text": TEXT, "site": ("1.resid_post",)}))
    return next(h for h in made.memory if h.name == stage).parts


@pytest.mark.parametrize(("d_sae", "batch"), [(1024, 1024), (4096, 1024), (1024, 64)])
def test_a_step_with_dead_features_takes_no_more_memory_than_planned_and_not_much_less(d_sae, batch):
    settings = SAESettings(d_sae=d_sae, k=8, batch=batch)
    trainer = Trainer(32, settings, steps=10)
    x = torch.randn(batch, 32)
    trainer.start(x)
    trainer.step(x)
    trainer.counters["silent"][:] = 10**7
    with Live() as live:
        trainer.step(x)
    # Gradients are made anew at each step, and planned with the parameters.
    found = live.peak - 4 * sae_parameters(32, d_sae)
    planned = held(settings, tiny.lm("llama", torch.float32).model, "training")["a step"]
    assert 0.4 * planned < found < 1.1 * planned


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_takes_no_more_memory_than_planned_and_not_much_less(architecture, dtype):
    config = tiny.ARCHITECTURES[architecture]()
    config.intermediate_size = 256
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with Live() as live:
        read(
            wrap(model, tiny.tokenizer(), "tiny"),
            ["1.resid_post"],
            torch.randint(4, 250, (TOKENS_PER_PASS // 128, 128)),
        )
    planned = held(SAESettings(dtype=dtype), model, "training")["a pass"]
    assert 0.6 * planned < live.peak < 1.02 * planned


def test_a_shape_is_read_from_the_models_own_config_before_any_other(tmp_path):
    lm = tiny.lm("gemma3", torch.float32)  # its embedding and its head are one
    lm.model.save_pretrained(tmp_path / "model")
    found = shape(str(tmp_path / "model"), PHI_3)
    assert found == measured(lm.model, str(tmp_path / "model"))
    assert found.parameters == sum(p.numel() for p in lm.model.parameters())


def test_configs_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="--model-config"):
        shape("owner/nothing")
    (tmp_path / "c.json").write_text('{"hidden_size": 3}')
    with pytest.raises(FileError, match="`model_type` is None"):
        shape("owner/nothing", tmp_path / "c.json")
    (tmp_path / "d.json").write_text(json.dumps(json.loads(PHI_3.read_text()) | {"hidden_size": "wide"}))
    with pytest.raises((FileError, ModelError), match=r"phi3|causal"):
        shape("owner/nothing", tmp_path / "d.json")
    with pytest.raises(SettingsError, match=r"blocks 0 to 31.*31\.resid_post"):
        phi_3(SETTINGS.model_copy(update={"site": ("32.resid_post",)}))
    with pytest.raises(SettingsError, match="no text"):
        phi_3(SETTINGS.model_copy(update={"text": ()}))
    with pytest.raises(SettingsError, match="float64"):
        on(phi_3(SETTINGS.model_copy(update={"dtype": "float64"})), find_gpu("H100"))


def test_ten_billion_tokens_on_seventy_billion_parameters_are_planned_as_the_config_says(monkeypatch, capsys):
    """As a user asks for it; the text and the model are not there."""
    monkeypatch.chdir(PHI_3.parents[1])
    given = ["train", "-c", "configs/llama-70b.toml", "--dry-run", "--gpu", "MI300X"]
    found = {}
    for gpus in (8, 64):
        monkeypatch.setattr("sys.argv", ["demur", *given, "--gpus", str(gpus), "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0
        found[gpus] = json.loads(capsys.readouterr().out)
    made = found[64]
    assert made["shape"]["parameters"] == 70_553_706_496
    assert (made["trained"], made["held_out"]) == (9_999_000_000, 1_000_000)
    assert made["steps"] == -(-9_999_000_000 // 65_536)
    assert made["disk"]["text.safetensors"] == 40_000_000_000
    assert [t["found"] for t in made["text"]] == [False]
    few, many = (found[n]["gpus"][0] for n in (8, 64))
    assert few["fits"] and many["fits"]
    assert few["seconds"]["reading"] == pytest.approx(8 * many["seconds"]["reading"])
    block = sum(b["matrices"] for b in shape("l", PHI_3.with_name("llama-70b.json")).model_dump()["blocks"][:41])
    least = 2 * block * 9_999_000_000 / (64 * find_gpu("MI300X").half * 1e12)
    assert least < many["seconds"]["reading"] < 6 * least  # 40 % of what the chips could do, attention beside
    monkeypatch.setattr("sys.argv", ["demur", *given])
    with pytest.raises(SystemExit):
        main()
    assert "main memory: 40.0 GB of token ids in each process" in " ".join(capsys.readouterr().out.split())
