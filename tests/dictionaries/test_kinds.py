"""Every kind against its formula, written out densely; gradients by autograd through dense codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dictionaries.kinds import LATENTS, MAKERS, K

from interp.dictionaries import matching_pursuit
from interp.dictionaries.gated import Gated
from interp.dictionaries.jumprelu import JumpReLU
from interp.dictionaries.matching_pursuit import MatchingPursuit
from interp.dictionaries.standardise import Moments, Standardisation
from interp.dictionaries.topk import BatchTopK, Matryoshka, TopK
from interp.errors import InterpError, ShapeError

NONE = torch.zeros(LATENTS, dtype=torch.bool)


def shaken(dictionary, seed=5):
    """Parameters in float64 with nothing at a special value: offsets, biases, thresholds."""
    generator = torch.Generator().manual_seed(seed)
    dictionary.double()
    with torch.no_grad():
        for name, p in dictionary.named_parameters():
            if name == "log_threshold":
                p.copy_(torch.rand(p.shape, generator=generator).double().log())
            else:
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        dictionary.atoms.copy_(F.normalize(dictionary.atoms, dim=1))
    return dictionary


@pytest.fixture
def x(planted):
    return planted.read.apply_to(planted.x[:64]).double()


def dense_codes(d, x):
    """The codes in use, by the formulas alone."""
    if d.kind == "matching_pursuit":
        codes, residual = torch.zeros(len(x), LATENTS, dtype=x.dtype), x - d.offset
        for _ in range(K):
            products = residual @ d.atoms.T
            best = products.argmax(1)
            value = products[torch.arange(len(x)), best].relu()
            codes = codes.index_put((torch.arange(len(x)), best), value, accumulate=True)
            residual = residual - value[:, None] * d.atoms[best]
        return codes
    z = (x - d.offset) @ d.encoder.T + d.bias
    if d.kind == "topk":
        return z.relu() * (z >= z.sort(1, descending=True).values[:, K - 1 : K])
    if d.kind in ("batch_topk", "matryoshka"):
        return z.relu() * (z > d.threshold)
    if d.kind == "jumprelu":
        return z * (z > d.log_threshold.exp())
    return (z > 0) * ((z - d.bias) * d.log_magnitude.exp() + d.magnitude_bias).relu()


@pytest.mark.parametrize("kind", MAKERS)
def test_codes_and_reconstructions_are_the_formulas(kind, planted, x, monkeypatch):
    monkeypatch.setattr("interp.dictionaries.dictionary.CHUNK_ROWS", 17)
    d = shaken(MAKERS[kind](planted.read))
    d.calibrate(x)
    if hasattr(d, "threshold"):
        d.threshold.mul_(0.999)  # not the value of an entry, which rounding could put on either side
    expected = dense_codes(d, x)
    codes = d.code(x)
    assert 0.5 < float(codes.l0().double().mean()) < LATENTS
    torch.testing.assert_close(codes.dense(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(d.decoded(codes), expected @ d.atoms + d.offset, rtol=0, atol=1e-12)
    # In use: the activations' own units, any leading axes.
    raw = d.read.undo(x)
    torch.testing.assert_close(d(raw.view(8, 8, -1)).view(64, -1), d.read.undo(expected @ d.atoms + d.offset))
    # Gradients by parameters and activations, as finetuning needs them.
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    own, p = x.clone().requires_grad_(), [q for n, q in d.named_parameters() if n != "log_threshold"]
    found = torch.autograd.grad((d.decoded(d.code(own)) * direction).sum(), [own, *p], allow_unused=True)
    out = dense_codes(d, own) @ d.atoms + d.offset
    wanted = torch.autograd.grad((out * direction).sum(), [own, *p], allow_unused=True)
    for a, b, q in zip(found, wanted, [own, *p], strict=True):
        zero = torch.zeros_like(q)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=0, atol=1e-11)


def trained_codes(d, x):
    """The codes in training, densely."""
    if d.kind in ("batch_topk", "matryoshka"):
        z = (x - d.offset) @ d.encoder.T + d.bias
        return z.relu() * (z >= z.flatten().sort(descending=True).values[K * len(x) - 1])
    return dense_codes(d, x)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "matryoshka", "matching_pursuit"])
@pytest.mark.parametrize("dead", [0, 7])
def test_losses_and_their_gradients_are_the_formulas(kind, dead, planted, x):
    d = shaken(MAKERS[kind](planted.read))
    some = torch.arange(LATENTS) < dead
    loss = d.loss(x, x, None, some, 0.5)
    codes = trained_codes(d, x)
    errors = [x - codes @ d.atoms - d.offset]
    if kind == "matryoshka":
        errors = [x - (codes * (torch.arange(LATENTS) < m)) @ d.atoms - d.offset for m in d.prefixes]
    expected = torch.stack([(e**2).mean() for e in errors]).mean()
    if dead and kind != "matching_pursuit":
        z = (x - d.offset) @ d.encoder.T + d.bias
        k = min(dead, x.shape[1] // 2)
        alone = torch.where(some, z, -torch.inf)
        alone = alone.relu() * (alone >= alone.sort(1, descending=True).values[:, k - 1 : k])
        error = errors[-1].detach()
        expected = expected + ((error - alone @ d.atoms) ** 2).mean() / (error**2).mean() / 32
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert float(loss.unexplained) == pytest.approx((errors[-1] ** 2).mean().item(), abs=1e-12)
    assert loss.codes.fired().tolist() == (codes > 0).sum(0).tolist()
    p = list(d.parameters())
    found = torch.autograd.grad(loss.total, p, allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, p, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_jumprelu_thresholds_learn_from_what_is_within_the_bandwidth(planted, x):
    d = shaken(JumpReLU(planted.read, LATENTS, sparsity=0.3))
    d.bandwidth = 0.5
    loss = d.loss(x, x, None, NONE, 1.0)
    z = (x - d.offset) @ d.encoder.T + d.bias
    theta = d.log_threshold.exp()
    codes = z * (z > theta)
    error = x - codes @ d.atoms - d.offset
    expected = (error**2).mean() + 0.3 * (z > theta).sum(1).double().mean()
    assert loss.total.item() == pytest.approx(expected.item())
    near = ((z - theta).abs() < 0.25).double()
    by_code = -2 * error @ d.atoms.T / error.numel()
    expected = -(theta / 0.5) * (near * by_code).sum(0) - 0.3 / len(x) / 0.5 * near.sum(0)
    (found,) = torch.autograd.grad(loss.total, d.log_threshold)
    torch.testing.assert_close(found, expected * theta, rtol=0, atol=1e-12)
    assert d.loss(x, x, None, NONE, 0.0).total.item() == pytest.approx((error**2).mean().item())  # no sparsity yet


def test_gated_loss_is_the_formula(planted, x):
    d = shaken(Gated(planted.read, LATENTS, sparsity=0.3))
    loss = d.loss(x, x, None, NONE, 1.0)
    pi = (x - d.offset) @ d.encoder.T + d.bias
    values = (pi > 0) * (d.log_magnitude.exp() * ((x - d.offset) @ d.encoder.T) + d.magnitude_bias).relu()
    error = x - values @ d.atoms - d.offset
    frozen = x - pi.relu() @ d.atoms.detach() - d.offset.detach()
    expected = (error**2).mean() + 0.3 * pi.relu().sum(1).mean() + (frozen**2).mean()
    p = list(d.parameters())
    for a, b in zip(torch.autograd.grad(loss.total, p), torch.autograd.grad(expected, p), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_matching_pursuit_without_a_gram_matrix_is_the_same(planted, x, monkeypatch):
    d = shaken(MatchingPursuit(planted.read, LATENTS, K))
    with_gram = d.code(x).dense()
    monkeypatch.setattr(matching_pursuit, "GRAM_LATENTS", LATENTS - 1)
    torch.testing.assert_close(d.code(x).dense(), with_gram, rtol=0, atol=1e-12)


def test_matching_pursuit_counts_a_latent_taken_twice_once():
    d = MatchingPursuit(Standardisation.identity(2), 2, 2).double()
    with torch.no_grad():
        d.atoms.copy_(torch.tensor([[1.0, 0.0], [1.0, 1e-9]]))
    codes = MatchingPursuit.code(d, torch.tensor([[1.0, 0.0]]).double())
    assert codes.l0().tolist() == [1]


def test_a_threshold_keeps_about_as_many_as_the_batch_did(planted):
    x = planted.read.apply_to(planted.x)
    d = BatchTopK(planted.read, LATENTS, K)
    with pytest.raises(InterpError, match="no threshold yet"):
        d.code(x)
    d.calibrate(x)
    assert float(d.code(x).l0().float().mean()) == pytest.approx(K, rel=0.02)


def test_conditioned_latents_have_a_gain_and_a_shift_for_each_bin(planted, x):
    bins = torch.arange(len(x)) % 3
    read = Standardisation(torch.zeros(3, 16), torch.ones(3, 1), steps=[[0], [1], [2]])
    d = shaken(TopK(read, LATENTS, K, conditioned=True))
    z = ((x - d.offset) @ d.encoder.T + d.bias) * d.log_gain[bins].exp() + d.shift[bins]
    expected = z.relu() * (z >= z.sort(1, descending=True).values[:, K - 1 : K])
    torch.testing.assert_close(d.code(x, bins).dense(), expected, rtol=0, atol=1e-12)
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    p = list(d.parameters())
    found = torch.autograd.grad((d.decoded(d.code(x, bins)) * direction).sum(), p)
    wanted = torch.autograd.grad(((expected @ d.atoms + d.offset) * direction).sum(), p)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    with pytest.raises(ShapeError, match="step bin of each row"):
        d.code(x)
    with pytest.raises(ShapeError, match="several step bins"):
        TopK(planted.read, LATENTS, K, conditioned=True)


def test_a_transcoder_reads_one_site_and_writes_another(planted):
    other = planted.x[:, :5] * 7 - 2
    d = TopK(planted.read, LATENTS, K, write=Standardisation.from_moments(Moments.of(other)))
    codes = d.encode(planted.x[:50])
    assert d.decode(codes).shape == (50, 5)
    z = planted.read.apply_to(planted.x[:50]) @ d.encoder.T  # nothing is subtracted: offsets are the other site's
    torch.testing.assert_close(codes.dense(), z.relu() * (z >= z.sort(1, descending=True).values[:, K - 1 : K]))
    assert d.directions([3]).shape == (1, 5)


def test_directions_are_in_the_units_of_the_activation(planted):
    d = TopK(planted.read, LATENTS, K)
    codes = d.encode(planted.x[:9])
    expected = codes.dense() @ d.directions() + d.read.undo(d.offset[None])
    torch.testing.assert_close(d.decode(codes), expected, atol=1e-5, rtol=1e-5)


def test_refusals(planted):
    read = planted.read
    with pytest.raises(ShapeError, match="k=41 of 40"):
        TopK(read, LATENTS, 41)
    with pytest.raises(ShapeError, match="k=0.5"):
        BatchTopK(read, LATENTS, 0.5)
    for prefixes in [(), (10, 5, 40), (10, 10, 40), (5, 39), (0, 40)]:
        with pytest.raises(ShapeError, match="Prefixes must ascend"):
            Matryoshka(read, LATENTS, K, prefixes=prefixes)
    with pytest.raises(InterpError, match="sparsity=-1"):
        JumpReLU(read, LATENTS, sparsity=-1)
    d = TopK(read, LATENTS, K)
    bad = planted.x[:5].clone()
    bad[3, 7] = torch.nan
    with pytest.raises(ShapeError, match="row 3, channel 7"):
        d.encode(bad)
    with pytest.raises(ShapeError, match="needed are rows of 16"):
        d.encode(planted.x[:, :9])
    with pytest.raises(ShapeError, match="no latent 40"):
        d.directions([40])
    with pytest.raises(ShapeError, match="Codes of 40 latents"):
        TopK(read, 39, K).decode(d.encode(planted.x[:2]))
