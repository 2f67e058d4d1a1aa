"""Runs with edits, against hooks written by hand."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from models.described import FAMILIES, captured, described, hooks_on, parts_of, ragged
from models.tiny import tiny

from interp.errors import InterpError
from interp.interventions.edits import Ablate, Add, Knockout, Replace, Scale, Swap, When
from interp.interventions.run import run
from interp.models.load import describe
from interp.models.site import ATTENTION_PARTS, HEAD_PARTS, LAYER_PARTS, Site

# Module and slice of a part, by hand: (path, "in" or "out", first column, width, heads).
WHERE = {
    "llama": {
        "resid_pre": ("model.layers.1", "in", 0, 24, 1), "resid_post": ("model.layers.1", "out", 0, 24, 1),
        "attn_out": ("model.layers.1.self_attn", "out", 0, 24, 1), "mlp_out": ("model.layers.1.mlp", "out", 0, 24, 1),
        "q": ("model.layers.1.self_attn.q_proj", "out", 0, 24, 4), "k": ("model.layers.1.self_attn.k_proj", "out", 0, 12, 2),
        "v": ("model.layers.1.self_attn.v_proj", "out", 0, 12, 2), "z": ("model.layers.1.self_attn.o_proj", "in", 0, 24, 4),
        "mlp_pre": ("model.layers.1.mlp.gate_proj", "out", 0, 40, 1), "mlp_act": ("model.layers.1.mlp.down_proj", "in", 0, 40, 1),
        "embed": ("model.embed_tokens", "out", 0, 24, 1), "final_norm": ("model.norm", "out", 0, 24, 1),
    },
    "gpt2": {
        "resid_pre": ("transformer.h.1", "in", 0, 24, 1), "resid_post": ("transformer.h.1", "out", 0, 24, 1),
        "attn_out": ("transformer.h.1.attn", "out", 0, 24, 1), "mlp_out": ("transformer.h.1.mlp", "out", 0, 24, 1),
        "q": ("transformer.h.1.attn.c_attn", "out", 0, 24, 4), "k": ("transformer.h.1.attn.c_attn", "out", 24, 24, 4),
        "v": ("transformer.h.1.attn.c_attn", "out", 48, 24, 4), "z": ("transformer.h.1.attn.c_proj", "in", 0, 24, 4),
        "mlp_pre": ("transformer.h.1.mlp.c_fc", "out", 0, 96, 1), "mlp_act": ("transformer.h.1.mlp.act", "out", 0, 96, 1),
    },
    "gemma2": {
        "resid_pre": ("model.layers.1", "in", 0, 24, 1),
        "attn_out": ("model.layers.1.post_attention_layernorm", "out", 0, 24, 1),
        "mlp_out": ("model.layers.1.post_feedforward_layernorm", "out", 0, 24, 1),
        "q": ("model.layers.1.self_attn.q_proj", "out", 0, 32, 4), "k": ("model.layers.1.self_attn.k_proj", "out", 0, 16, 2),
        "v": ("model.layers.1.self_attn.v_proj", "out", 0, 16, 2), "z": ("model.layers.1.self_attn.o_proj", "in", 0, 32, 4),
        "mlp_pre": ("model.layers.1.mlp.gate_proj", "out", 0, 40, 1), "mlp_act": ("model.layers.1.mlp.down_proj", "in", 0, 40, 1),
    },
}  # fmt: skip
PLACES = [(family, part) for family, parts in WHERE.items() for part in parts]


@contextmanager
def hand_hook(network, where, change):
    """`change(x)` edits [batch, pos, head, width] in place, in a plain PyTorch hook."""
    path, side, first, width, heads = where
    module = network.get_submodule(path)

    def edited(x):
        x = x.clone()
        view = x[..., first : first + width].unflatten(-1, (heads, -1))
        change(view)
        x[..., first : first + width] = view.flatten(-2)
        return x

    def before(_module, args, kwargs):
        return (
            ((edited(args[0]), *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])})
        )

    def after(_module, _args, output):
        return edited(output) if isinstance(output, torch.Tensor) else (edited(output[0]), *output[1:])

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def by_hand(network, prompts, where, change):
    with hand_hook(network, where, change):
        return network(input_ids=prompts.ids, attention_mask=prompts.mask.long(), use_cache=False).logits


def equal(found, expected, prompts, atol=1e-12):
    """Elementwise, at every token of every prompt."""
    torch.testing.assert_close(found[prompts.mask], expected[prompts.mask], rtol=0, atol=atol)


@pytest.mark.parametrize(("family", "part"), PLACES)
def test_edits_equal_hand_written_hooks(family, part):
    model, (clean, corrupted) = described(family), ragged()
    where, source = WHERE[family][part], captured(family)
    layer = 1 if part in LAYER_PARTS else None
    heads, lengths = where[4], clean.lengths.tolist()
    x = source[Site(part, layer)]
    x = x if x.ndim == 4 else x[:, :, None]
    vector = torch.linspace(-1, 1, x.shape[-1], dtype=torch.float64)
    basis = torch.linalg.qr(
        torch.randn(x.shape[-1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q
    mask = clean.mask.double()[..., None, None]
    mean = (x * mask).sum((0, 1)) / mask.sum()
    mean_at = (x * mask).sum(0) / mask.sum(0).clamp(min=1)

    def project(new, old):
        return old + (new - old) @ basis @ basis.T

    # (edit at the site, the same at [row, position, head]); every row at its last token and at token 2
    cases = {
        "replace": (lambda s, **k: Replace(s, source, **k), lambda old, b, p, h: x[b, p, h]),
        "add": (lambda s, **k: Add(s, vector if s.head is not None or heads == 1 else vector.expand(heads, -1), 0.5, **k),
                lambda old, b, p, h: old + 0.5 * vector),
        "scale": (lambda s, **k: Scale(s, -1.5, **k), lambda old, b, p, h: -1.5 * old),
        "zero": (lambda s, **k: Ablate(s, **k), lambda old, b, p, h: 0 * old),
        "mean": (lambda s, **k: Ablate(s, "mean", over=source, **k), lambda old, b, p, h: mean[h]),
        "mean at": (lambda s, **k: Ablate(s, "mean", over=source, per_position=True, **k), lambda old, b, p, h: mean_at[p, h]),
        "swap": (lambda s, **k: Swap(s, source, basis, **k), lambda old, b, p, h: project(x[b, p, h], old)),
    }  # fmt: skip
    for head in (None, heads - 1) if part in HEAD_PARTS else (None,):
        chosen = range(heads) if head is None else [head]
        for name, (edit, value) in cases.items():

            def change(view, value=value, chosen=chosen):
                for b in (0, 2):
                    for p in (2, lengths[b] - 1):
                        for h in chosen:
                            view[b, p, h] = value(view[b, p, h].clone(), b, p, h)

            site = Site(part, layer, head)
            found = run(model, corrupted, [edit(site, positions=[2, -1], rows=[0, 2])], [site]).logits
            expected = by_hand(model.network, corrupted, where, change)
            equal(found, expected, corrupted)
            if name in ("replace", "add"):
                assert (expected - run(model, corrupted).logits)[corrupted.mask].abs().max() > 1e-3, name
    assert hooks_on(model.network) == 0


@pytest.mark.parametrize("family", WHERE)
def test_single_neurons(family):
    model, (clean, corrupted), source = described(family), ragged(), captured(family)
    site, units = Site("mlp_act", 1), [3, 17, 5]
    x = source[site]

    def change(view):
        for b, n in enumerate(clean.lengths.tolist()):
            for p in range(n):
                view[b, p, 0, units] = x[b, p, units]

    found = run(model, corrupted, [Replace(site, source, units=units)]).logits
    expected = by_hand(model.network, corrupted, WHERE[family]["mlp_act"], change)
    equal(found, expected, corrupted)
    values = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def write(view):
        view[:, 2, 0, units] = values

    found = run(model, corrupted, [Replace(site, values, positions=2, units=units)]).logits
    equal(found, by_hand(model.network, corrupted, WHERE[family]["mlp_act"], write), corrupted)
    for edit, factor in ((Scale(site, 2.0, positions=2, units=[5]), 2.0), (Ablate(site, positions=2, units=[5]), 0.0)):

        def multiply(view, factor=factor):
            view[:, 2, 0, 5] *= factor

        equal(
            run(model, corrupted, [edit]).logits,
            by_hand(model.network, corrupted, WHERE[family]["mlp_act"], multiply),
            corrupted,
        )


def test_resampling_takes_another_prompts_value_and_no_fixed_point():
    model = described("llama")
    clean = ragged((6, 6, 6, 6), seed=3)[0]
    source = run(model, clean, (), ["z"])
    site, orders = Site("z", 1), set()
    for seed in range(6):
        found = run(model, clean, [Ablate(site, "resample", over=source, seed=seed)], [site])[site]
        taken = [next(j for j in range(4) if torch.equal(found[i], source[site][j])) for i in range(4)]
        assert sorted(taken) == [0, 1, 2, 3] and all(i != j for i, j in enumerate(taken))
        orders.add(tuple(taken))
        again = run(model, clean, [Ablate(site, "resample", over=source, seed=seed)], [site])[site]
        assert torch.equal(found, again)
    assert len(orders) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_identities_of_every_part(family):
    """A run patched with itself is itself; a patched site holds the source's value; a full cut is the source."""
    model, (clean, corrupted), source = described(family), ragged(), captured(family)
    plain = run(model, corrupted, (), [part for part in parts_of(model) if part not in ATTENTION_PARTS])
    scored = run(model, corrupted, (), ["attn_scores", "attn_pattern"])  # there attention is computed explicitly
    for part in parts_of(model):
        site = model.sites(part)[-1 if part in ("final_norm", "logits", "embed") else 1]
        attention = part in ATTENTION_PARTS
        same = run(model, corrupted, [Replace(site, scored if attention else plain)])
        if attention or part == "head_result":
            equal(same.logits, plain.logits, corrupted, 1e-5 if family == "gemma2" else 1e-10)
        else:
            assert torch.equal(same.logits, plain.logits), part
        patched = run(model, corrupted, [Replace(site, source)], [site])
        if attention:
            kept = corrupted.mask[:, None, :, None] & corrupted.mask[:, None, None, :]
            torch.testing.assert_close(patched[site].nan_to_num(neginf=-9)[kept.expand_as(patched[site])],
                                       source[site].nan_to_num(neginf=-9)[kept.expand_as(patched[site])], rtol=0, atol=1e-12)  # fmt: skip
        else:
            assert torch.equal(patched[site][corrupted.mask], source[site][corrupted.mask]), part
    for site in (Site("embed"), Site("resid_pre", 0), Site("resid_pre", 2), Site("resid_post", 1), Site("final_norm")):
        # Gemma 2 takes its softmax in float32, where the order of additions shows; `captured` computes it explicitly.
        equal(
            run(model, corrupted, [Replace(site, source)]).logits,
            source.logits,
            corrupted,
            1e-5 if family == "gemma2" else 1e-10,
        )
    assert torch.equal(
        run(model, corrupted, [Replace(Site("logits"), source)]).logits[clean.mask], source.logits[clean.mask]
    )
    with pytest.raises(AssertionError):  # and the two runs do differ
        equal(plain.logits, source.logits, corrupted, 1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "gpt_neox"])
def test_heads_results_zeroed_are_the_projection_without_its_input(family):
    model, prompts = described(family), ragged()[0]
    site, output = Site("head_result", 1), model.layers[1].o
    bias = getattr(output, "bias", None)
    none = run(model, prompts, [Ablate(site)], ["attn_out", site])
    post = model.layers[1].post_attn_norm
    constant = torch.zeros(24, dtype=torch.float64) if bias is None else bias.detach()
    with torch.no_grad():
        constant = constant if post is None else post(constant)
    torch.testing.assert_close(none["attn_out", 1][prompts.mask], constant.expand(18, 24), rtol=0, atol=1e-10)
    equal(none.logits, run(model, prompts, [Replace(Site("attn_out", 1), constant)]).logits, prompts, 1e-10)
    equal(none.logits, run(model, prompts, [Ablate(Site("z", 1))]).logits, prompts, 1e-10)
    one = run(model, prompts, [Ablate(Site("head_result", 1, 2), positions=-1)])
    equal(one.logits, run(model, prompts, [Ablate(Site("z", 1, 2), positions=-1)]).logits, prompts, 1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_knockout_and_patterns_by_an_explicit_recomputation(family):
    """z from the captured pattern and values, by hand; then what a knockout, or a written pattern, makes of it."""
    model, prompts = described(family), ragged()[0]
    whole = captured(family)
    scores, v = whole["attn_scores", 1], whole["v", 1].repeat_interleave(4 // model.n_kv_heads, 2).transpose(1, 2)
    atol = 1e-6 if family == "gemma2" else 1e-12
    lengths = prompts.lengths.tolist()

    def z_of(pattern):
        return (pattern @ v).transpose(1, 2)

    def patched(z):  # the rest of the network from this z on
        return run(model, prompts, [Replace(Site("z", 1), z)]).logits

    equal(z_of(scores.softmax(-1)), whole["z", 1], prompts, atol)
    cut = scores.clone()
    for b, n in enumerate(lengths):
        cut[b, :, n - 1, [1, n - 2]] = -torch.inf
    knocked = run(
        model,
        prompts,
        [Knockout(1, keys=torch.tensor([[1, n - 2] for n in lengths]), positions=-1)],
        ["z", "attn_pattern"],
    )
    equal(knocked["z", 1], z_of(cut.softmax(-1)), prompts, atol)
    for b, n in enumerate(lengths):
        row = knocked["attn_pattern", 1][b, :, n - 1]
        assert not row[:, [1, n - 2]].any()
        torch.testing.assert_close(row.sum(-1), torch.ones(4, dtype=row.dtype), rtol=0, atol=1e-6)
    equal(knocked.logits, patched(z_of(cut.softmax(-1))), prompts, atol * 10)
    one = scores.clone()
    one[:, 2, 3, 2] = -torch.inf
    found = run(model, prompts, [Knockout(1, keys=2, positions=3, head=2)])
    equal(found.logits, patched(z_of(one.softmax(-1))), prompts, atol * 10)
    two = run(model, prompts, [Knockout(1, keys=2, positions=3, head=2), Knockout(1, keys=1, positions=3, head=2)])
    equal(two.logits, run(model, prompts, [Knockout(1, keys=[1, 2], positions=3, head=2)]).logits, prompts, atol)
    uniform = scores.isfinite().double()
    uniform = uniform / uniform.sum(-1, keepdim=True)
    written = run(model, prompts, [Replace(Site("attn_pattern", 1), uniform.transpose(1, 2))])
    equal(written.logits, patched(z_of(uniform)), prompts, atol * 10)
    scaled = run(model, prompts, [Scale(Site("attn_pattern", 1, 0), 0.5, positions=3)])
    half = scores.softmax(-1)
    half[:, 0, 3] *= 0.5
    equal(scaled.logits, patched(z_of(half)), prompts, atol * 10)
    flat = run(model, prompts, [Replace(Site("attn_scores", 1, 1), 0.0, positions=4)])
    even = scores.clone()
    even[:, 1, 4] = torch.where(even[:, 1, 4].isfinite(), 0.0, -torch.inf) if family != "mistral" else even[:, 1, 4]
    if family != "mistral":  # where the window ends in the middle, the next test looks
        equal(flat.logits, patched(z_of(even.softmax(-1))), prompts, atol * 10)


def test_an_edit_of_scores_reveals_no_key_that_the_mask_hides():
    model, prompts = described("mistral"), ragged()[0]
    found = run(model, prompts, [Replace(Site("attn_scores", 1), 0.0)], ["attn_pattern"])["attn_pattern", 1]
    for query in range(5):
        seen = range(max(0, query - 3), query + 1)
        expected = torch.zeros(7, dtype=torch.float64)
        expected[list(seen)] = 1 / len(seen)
        torch.testing.assert_close(found[0, :, query], expected.expand(4, 7), rtol=0, atol=1e-12)


def test_edits_act_in_list_order():
    model, prompts = described("llama"), ragged()[0]
    site = Site("resid_pre", 1)
    x = captured("llama")[site]
    for edits, expected in (
        ([Scale(site, 2.0), Add(site, 1.0)], 2 * x + 1),
        ([Add(site, 1.0), Scale(site, 2.0)], 2 * (x + 1)),
        ([Replace(site, 3.0), Add(site, 1.0), Scale(site, -1.0)], torch.full_like(x, -4)),
        ([Add(site, 1.0), Replace(site, 3.0)], torch.full_like(x, 3)),
        ([Ablate(site), Add(site, captured("llama"), 0.5)], 0.5 * x),
    ):
        equal(run(model, prompts, edits, [site])[site], expected, prompts)
    units = run(model, prompts, [Scale(site, 2.0, units=[1]), Add(site, 1.0), Scale(site, 3.0, units=[1])], [site])[
        site
    ]
    expected = x + 1
    expected[..., 1] = 3 * (2 * x[..., 1] + 1)
    equal(units, expected, prompts)
    basis = torch.eye(24, dtype=torch.float64)[:, :1]
    swapped = run(model, prompts, [Add(site, 1.0), Swap(site, 0.0, basis), Add(site, 1.0)], [site])[site]
    expected = x + 2
    expected[..., 0] = 1
    equal(swapped, expected, prompts)


def test_edits_at_shared_taps_and_many_sites_act_together():
    """q, k, v of one fused projection; z and the heads' results of one output projection."""
    model, (clean, corrupted), source = described("gpt2"), ragged(), captured("gpt2")
    edits = [Replace(Site(part, 1), source) for part in ("v", "q", "k")]
    both = run(model, corrupted, edits, ["q", "k", "v", "z"])
    for part in "qkv":
        equal(both[part, 1], source[part, 1], clean, 0)
    equal(both["z", 1], source["z", 1], clean, 1e-12)
    edits = [Ablate(Site("head_result", 1, 0)), Replace(Site("z", 1), source)]
    found = run(model, corrupted, edits, ["head_result", "attn_out"])
    expected = source["head_result", 1].clone()
    expected[:, :, 0] = 0
    equal(found["head_result", 1], expected, clean, 1e-12)
    equal(found["attn_out", 1], expected.sum(2) + model.layers[1].o.bias.detach(), clean, 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_never_writes_into_its_input(family):
    model, (_, corrupted), source = described(family), ragged(), captured(family)
    before = {site: x.clone() for site, x in source.activations.items()}
    weights = {name: w.clone() for name, w in model.network.named_parameters()}
    value = torch.ones(24, dtype=torch.float64)
    for part in ("resid_pre", "resid_mid", "z", "mlp_out", "attn_pattern"):
        if part in model.untouchable:
            continue
        site = Site(part, 1)
        first = run(model, corrupted, [Replace(site, source), Scale(site, 3.0)], [Site("resid_pre", 1), site])
        edits = [Add(Site("resid_pre", 1), value), Scale(site, 2.0)]
        kept = first.activations[site].clone()
        run(model, corrupted, edits)
        assert torch.equal(first.activations[site], kept)
    # a capture upstream is not changed by an edit downstream that must reach the same tensor
    if "resid_mid" not in model.untouchable:
        up = run(model, corrupted, (), ["attn_out", "resid_pre"])
        down = run(model, corrupted, [Add(Site("resid_mid", 1), 5.0)], ["attn_out", "resid_pre"])
        assert torch.equal(up["attn_out", 1], down["attn_out", 1]) and torch.equal(
            up["resid_pre", 1], down["resid_pre", 1]
        )
    assert torch.equal(value, torch.ones_like(value))
    assert all(torch.equal(x.nan_to_num(), before[site].nan_to_num()) for site, x in source.activations.items())
    assert all(torch.equal(w, weights[name]) for name, w in model.network.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_touch_each_other(family):
    model, (_, corrupted), source = described(family), ragged(), captured(family)
    plain = run(model, corrupted).logits
    for part in ("resid_pre", "z", "k", "mlp_out", "head_result", "attn_pattern"):
        found = run(model, corrupted, [Replace(Site(part, 1), source, rows=[1])]).logits
        for row, n in enumerate(corrupted.lengths.tolist()):
            difference = (found[row, :n] - plain[row, :n]).abs().max()
            assert (difference > 1e-4) if row == 1 else difference < (1e-5 if family == "gemma2" else 1e-10), (
                part,
                row,
            )


def test_an_edit_changes_nothing_before_its_position():
    model, prompts = described("gpt2"), ragged()[0]
    plain = run(model, prompts).logits
    found = run(model, prompts, [Add(Site("resid_pre", 0), captured("gpt2"), positions=3)]).logits
    torch.testing.assert_close(found[:, :3], plain[:, :3], rtol=0, atol=1e-12)
    assert ((found - plain)[:, 3:][prompts.mask[:, 3:]].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize(
    "site",
    [
        Site("embed"),
        Site("resid_mid", 1),
        Site("z", 1, 2),
        Site("head_result", 0, 1),
        Site("mlp_act", 2),
        Site("attn_scores", 1, 0),
    ],
)
def test_gradients_reach_an_added_value(site):
    """GPT-2, because every step of it keeps float64 (a Llama's norms go through float32)."""
    model, prompts = described("gpt2"), ragged()[0]
    width = model.width_of(site.part) or prompts.ids.shape[1]
    value = 0.1 * torch.randn(width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value.requires_grad_()

    def loss(v):
        logits = run(model, prompts, [Add(site, v, positions=3)], grad=True).logits
        return logits[prompts.mask][:, 5].sum() + logits[0, 6].square().sum()

    (gradient,) = torch.autograd.grad(loss(value), value)
    for i in range(0, width, max(1, width // 6)):
        step = torch.zeros_like(gradient)
        step[i] = 1e-5
        with torch.no_grad():
            numeric = (loss(value + step) - loss(value - step)) / 2e-5
        torch.testing.assert_close(gradient[i], numeric, rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    assert not run(model, prompts, [Add(site, value.detach(), positions=3)]).logits.requires_grad


def test_captures_keep_their_graph_only_when_asked():
    model, prompts = described("llama"), ragged()[0]
    value = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    kept = run(model, prompts, [Add(Site("embed"), value)], ["resid_post"], grad=True)
    (gradient,) = torch.autograd.grad(kept["resid_post", 2][0, 0, 0], value)
    assert gradient.abs().max() > 0
    assert not run(model, prompts, (), ["resid_post"])["resid_post", 0].requires_grad


def test_text_and_padded_tensors_and_when(speaking):
    text = "The keys to the cabinet"
    assert torch.equal(run(speaking, text).logits, run(speaking, speaking.prompts([text])).logits)
    model, prompts = described("llama"), ragged()[0]
    with pytest.raises(InterpError, match="generated steps"):
        run(model, prompts, [Scale(Site("resid_pre", 0), 2.0, when=When([0]))])


def test_empty_rows_and_empty_edits_are_no_edits():
    model, prompts = described("llama"), ragged()[0]
    plain = run(model, prompts).logits
    assert torch.equal(run(model, prompts, []).logits, plain)
    assert torch.equal(run(model, prompts, [Scale(Site("resid_pre", 1), 9.0, rows=[])]).logits, plain)
    assert torch.equal(run(model, prompts, [Scale(Site("resid_pre", 1), 9.0, positions=[])]).logits, plain)


def test_float32_models_take_float64_values_and_the_reverse():
    for dtype, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        model, prompts = described("llama", dtype), ragged()[0]
        value = torch.linspace(0, 1, 24, dtype=other)
        found = run(model, prompts, [Replace(Site("resid_pre", 1), value)], ["resid_pre"])["resid_pre", 1]
        assert found.dtype == dtype
        torch.testing.assert_close(found[prompts.mask], value.to(dtype).expand(18, 24), rtol=0, atol=0)


def test_half_precision_runs_and_stays_close():
    network = tiny("llama").to(torch.bfloat16)
    model, prompts = describe(network, None, "half"), ragged()[0]
    exact, half = described("llama"), run(model, prompts).logits
    assert half.dtype == torch.bfloat16
    assert (half.double() - run(exact, prompts).logits)[prompts.mask].abs().mean() < 0.2
