"""A training step against the same formulas left to autograd, dense, and torch's own Adam; each rule's own loss."""

import pytest
import torch

from demur.errors import SAEError
from demur.sae import sparse
from demur.sae.rules import RULES, dense
from demur.sae.settings import SAESettings
from demur.sae.trainer import Trainer, along_the_sphere, geometric_median, largest, onto_the_sphere
from tests import tiny

SETTINGS = SAESettings(
    site="1.resid_post", d_sae=48, k=6, batch=64, buffer=512, dead_after=500, checkpoint_every=0, seed=3
)
X = 3 * torch.randn(256, 32, generator=torch.Generator().manual_seed(0)) + 1
RULE = ["topk", "batchtopk", "jumprelu", "relu"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Naive:
    """One step the slow way: every activation dense, every gradient from autograd, Adam not fused."""

    def __init__(self, trainer: Trainer) -> None:
        self.settings, self.trainer = trainer.settings, trainer
        self.w = {name: weight.cpu().clone().requires_grad_() for name, weight in trainer.weights.items()}
        self.adam = torch.optim.Adam(self.w.values(), lr=1.0, foreach=False)

    def activations(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Dense activations, and the rule's own loss, of a batch whose summed variance is 1."""
        k, zero = self.settings.k, 0.0
        if self.settings.rule == "topk":
            kept = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
            return pre.relu() * kept, zero
        if self.settings.rule == "batchtopk":
            edge = pre.flatten().topk(k * len(pre)).values[-1]
            return pre.relu() * (pre >= edge), zero
        if self.settings.rule == "relu":
            return pre.relu(), 5.0 * pre.relu().sum()
        return Jump.apply(pre, self.w["log_threshold"].exp(), self.settings.bandwidth), self.count_loss(pre)

    def count_loss(self, pre: torch.Tensor) -> torch.Tensor:
        count = Step.apply(pre.detach(), self.w["log_threshold"].exp(), self.settings.bandwidth).sum(1).mean()
        return (count / self.settings.k - 1).pow(2)

    def step(self, x: torch.Tensor) -> float:
        """Gives the share of the variance that was left unexplained."""
        w, dead = self.w, self.trainer.counters["silent"].cpu() > self.settings.dead_after
        z = x * self.trainer.counters["scale"].cpu()
        pre = (z - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]
        f, own = self.activations(pre)
        error = z - f @ w["W_dec"] - w["b_dec"]
        variance = (z - z.mean(0)).pow(2).sum()
        loss = error.pow(2).sum() / variance + own / (variance if self.settings.rule == "relu" else 1)
        if dead.any():
            values, places = pre[:, dead].topk(min(int(dead.sum()), 16), dim=1)
            guess = torch.zeros(len(x), int(dead.sum())).scatter(1, places, values.relu()) @ w["W_dec"][dead]
            left = error.detach()
            loss = loss + self.settings.dead_loss * (left - guess).pow(2).sum() / left.pow(2).sum()
        self.adam.zero_grad()
        loss.backward()
        W, g = w["W_dec"].detach(), w["W_dec"].grad
        g -= (g * W).sum(1, keepdim=True) * W
        self.adam.param_groups[0]["lr"] = self.settings.learning_rate() * self.trainer._schedule()
        self.adam.step()
        with torch.no_grad():
            w["W_dec"].copy_(torch.nn.functional.normalize(w["W_dec"], dim=1))
        return float(error.detach().pow(2).sum() / variance)


class Step(torch.autograd.Function):
    """Heaviside with the pseudo-derivative of arXiv 2407.14435, equation 12."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).float()

    @staticmethod
    def backward(ctx, by_output):
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2).float()
        return None, (-near / ctx.bandwidth * by_output).sum(0), None


class Jump(torch.autograd.Function):
    """JumpReLU with its equation 11."""

    @staticmethod
    def forward(ctx, z, threshold, bandwidth):
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx, by_output):
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2).float()
        by_threshold = (-threshold / ctx.bandwidth * near * by_output).sum(0)
        return by_output * (z > threshold), by_threshold, None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dead", [0, 10, 30])
@pytest.mark.parametrize("rule", RULE)
def test_steps_are_those_of_a_naive_loop(rule, dead, device, monkeypatch):
    monkeypatch.setattr(sparse, "PIECE", 100 * 48)  # several pieces a batch
    settings = SETTINGS.model_copy(update={"rule": rule, "warmup": 0.0})
    trainer = Trainer(32, settings, steps=10, device=torch.device(device))
    trainer.start(X.to(device))
    naive = Naive(trainer)
    for step in range(4):
        if dead:
            trainer.counters["silent"][:dead] = 10**6
        batch = X[64 * step :][:64].repeat(2, 1) + 0.01 * step
        fvu = naive.step(batch)
        assert float(trainer.step(batch.to(device)).fvu) == pytest.approx(fvu, rel=1e-5)
        for name, weight in trainer.weights.items():
            close = {"atol": 1e-5, "rtol": 1e-5}
            torch.testing.assert_close(weight.grad.cpu(), naive.w[name].grad, **close, msg=f"by {name}, {step}")
            torch.testing.assert_close(weight.cpu(), naive.w[name].detach(), **close, msg=f"{name}, {step}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", RULE)
def test_the_same_steps_twice_are_the_same_bit_by_bit(rule, device):
    # Or a training that was killed could not go on as it would have.
    found = []
    for _ in range(2):
        trainer = Trainer(32, SETTINGS.model_copy(update={"rule": rule}), steps=10, device=torch.device(device))
        trainer.start(X.to(device))
        for step in range(4):
            trainer.counters["silent"][:10] = 10**6
            trainer.step(X[64 * step :][:64].to(device))
        found.append({name: weight.clone() for name, weight in trainer.weights.items()})
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


@pytest.mark.parametrize("rule", RULE)
def test_folding_the_scale_changes_units_and_nothing_else(rule):
    x = 40 * torch.randn(300, 32, generator=torch.Generator().manual_seed(0)) + 3
    trainer = Trainer(32, SETTINGS.model_copy(update={"rule": rule}), steps=10)
    trainer.start(x)
    for _ in range(5):
        trainer.step(x[:64])
    sae = trainer.sae(tiny.lm("llama", torch.float32), "1.resid_post")
    w, s = trainer.weights, trainer.counters["scale"]
    pre = (x * s - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]
    f = dense(*RULES[rule](pre, SETTINGS.k, trainer.rule.threshold()), 48)
    torch.testing.assert_close(sae.decode(sae.encode(x)), (f @ w["W_dec"] + w["b_dec"]) / s, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def planted(tokens: int = 20_000) -> torch.Tensor:
    """Each token is the sum of three of 48 directions, in different amounts."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    picked = torch.rand(tokens, 48, generator=generator).topk(3, dim=1).indices
    amounts = 0.5 + torch.rand(tokens, 3, generator=generator)
    return (directions[picked] * amounts[:, :, None]).sum(1)


def trained(x: torch.Tensor, steps: int, **settings: object) -> tuple[Trainer, list[float]]:
    trainer = Trainer(32, SETTINGS.model_copy(update={"lr": 5e-3, **settings}), steps=steps)
    trainer.start(x)
    figures = [trainer.step(x[i % (len(x) // 64) * 64 :][:64]) for i in range(steps)]
    last = figures[-20:]
    return trainer, [sum(float(f[i]) for f in last) / 20 for i in range(3)]


@pytest.mark.parametrize("rule", ["batchtopk", "jumprelu"])
def test_in_use_as_many_features_are_active_as_were_asked_for(rule):
    x = planted()
    trainer, (fvu, _, l0) = trained(x, 600, rule=rule, k=3)
    assert fvu < 0.35
    assert l0 == pytest.approx(3, rel=0.25)
    w = trainer.weights
    pre = (x[-2000:] * trainer.counters["scale"] - w["b_dec"]) @ w["W_enc"].t() + w["b_enc"]
    values, _ = RULES[rule](pre, 3, trainer.rule.threshold())
    assert float((values > 0).sum(1).float().mean()) == pytest.approx(3, rel=0.3)


def test_a_heavier_l1_loss_leaves_fewer_features_active():
    x = planted()
    _, (_, _, many) = trained(x, 300, rule="relu", sparsity=0.5)
    _, (_, _, few) = trained(x, 300, rule="relu", sparsity=8.0)
    assert few < 0.7 * many


def test_dead_features_come_back():
    x = planted()

    def dead(weight: float) -> float:
        trainer = Trainer(32, SETTINGS.model_copy(update={"dead_loss": weight, "lr": 5e-3}), steps=600)
        trainer.start(x)
        trainer.weights["b_enc"][:24] = -3  # half of the features start out of reach
        for i in range(600):
            figures = trainer.step(x[i % 300 * 64 :][:64])
        return float(figures.dead)

    assert dead(1 / 32) < dead(0.0) / 2


def test_what_a_gpu_compiles_is_one_graph_and_the_same():
    W, g = torch.randn(48, 32, generator=torch.Generator().manual_seed(0)), X[:48].clone()
    for function, given in ((along_the_sphere, (g, W)), (onto_the_sphere, (W,))):
        plain, compiled = [t.clone() for t in given], [t.clone() for t in given]
        function(*plain)
        torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)(*compiled)
        torch.testing.assert_close(plain, compiled)


def test_the_largest_of_each_row_are_kept():
    f = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).relu()
    wanted = torch.zeros_like(f).scatter_(1, f.topk(8, dim=1).indices, f.topk(8, dim=1).values)
    assert torch.equal(largest(f.clone(), 8), wanted)
    assert torch.equal(largest(f.clone(), 20), f)


def test_a_batch_that_is_one_token_over_and_over_teaches_nothing_and_breaks_nothing():
    trainer = Trainer(32, SETTINGS, steps=10)
    trainer.start(X)
    trainer.step(X[:1])
    assert all(torch.isfinite(weight).all() for weight in trainer.weights.values())


def test_activations_of_another_width_are_one_clear_error():
    trainer = Trainer(32, SETTINGS, steps=10)
    with pytest.raises(SAEError, match="16 wide"):
        trainer.step(torch.randn(8, 16))
    other = Trainer(32, SETTINGS.model_copy(update={"d_sae": 64}), steps=10)
    with pytest.raises(SAEError, match=r"W_enc .*\(64, 32\).*\(48, 32\)"):
        trainer.restore(other.state())
    with pytest.raises(SAEError, match="not of a training with the rule batchtopk"):
        Trainer(32, SETTINGS.model_copy(update={"rule": "batchtopk"}), steps=10).restore(trainer.state())


def test_geometric_median_is_not_moved_by_an_outlier():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    with_outlier = torch.cat([x, torch.full((1, 4), 1e4)])
    assert (geometric_median(with_outlier) - geometric_median(x)).norm() < 0.05 < with_outlier.mean(0).norm()
