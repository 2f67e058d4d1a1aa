"""Denoising runs with edits: identities on every family, then hooks written by hand, then what is refused."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models.denoisers import described, every_site, native, options, sampling, scheduled, state_of, texts
from models.described import described as language_model
from models.pipelines import FAMILIES, NEGATIVES, PROMPTS, SCHEDULERS, STOCHASTIC, arguments, pipeline

from interp.errors import InterpError, PairError, ShapeError, SiteError, UnfiredError
from interp.interventions import denoise as module
from interp.interventions.denoise import Denoising, denoise
from interp.interventions.edits import Ablate, Add, Knockout, Replace, Scale, Swap, UnderPrompt, When
from interp.interventions.run import run
from interp.models.denoiser import describe_pipeline
from interp.models.guidance import Branch
from interp.models.site import ATTENTION_PARTS, Site

COND, UNCOND = Branch.COND, Branch.UNCOND
TEXTUAL = [family for family in FAMILIES if family != "dit"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_BASE = {}


def base(family: str, guided: bool = True):
    """Two rows with everything captured, once per family."""
    key = family, guided
    if key not in _BASE:
        model = described(family)
        _BASE[key] = denoise(model, sampling(family, guided=guided), [], every_site(model))
    return _BASE[key]


def a_site(family: str) -> Site:
    """Somewhere in the middle."""
    return described(family).check("up.1.1.self_attn_out" if "sd" in family and family != "sd3" else "block.1.ff_out")


def basis_of(width: int, rank: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, min(rank, width), dtype=torch.float64, generator=generator))[0]


# -- identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
class TestIdentities:
    def test_no_edit_is_the_native_call(self, family, guided):
        """Prompts with two seeds each, against two images per prompt; captures change nothing."""
        captured = base(family, guided).images
        plain = run(described(family), sampling(family, guided=guided)).images
        assert torch.equal(captured, plain)
        assert torch.equal(plain, native(family, [0, 0], guided=guided))
        two = run(described(family), sampling(family, guided=guided, seeds=[3, 4])).images
        assert torch.equal(two, native(family, [3, 4, 3, 4], guided=guided, each=2))
        if family != "dit":  # which knows no num_images_per_prompt; where they differ, its text stage has fewer rows
            theirs = native(family, [3, 4, 3, 4], guided=guided, num_images_per_prompt=2)
            torch.testing.assert_close(two, theirs, rtol=0, atol=1e-14)

    def test_writing_what_is_there(self, family, guided):
        """Edits of every type with the value that changes nothing.

        Those that keep what comes in, at every site at once; Replace and Swap alone, as a later one would undo what an
        earlier one broke.
        """
        model, ours = described(family), base(family, guided)
        sites = every_site(model)
        parts = {site.part: site for site in sites}  # the last site of each
        firsts = {site.part: site for site in reversed(sites)}
        keeping = [lambda site: Add(site, 0.0), lambda site: Scale(site, 1.0)]
        cases = [[], *([keeping[(k + shift) % 2](site) for k, site in enumerate(sites)] for shift in (0, 1))]
        for k, part in enumerate(parts):
            if (guided and k % 2 == FAMILIES.index(family) % 2) or k % 6 == 0:
                cases.append([Replace(firsts[part], ours)])
                if part not in ATTENTION_PARTS:  # R Rᵀ (x − x) is exactly nothing
                    cases.append([Swap(parts[part], ours, basis_of(model.width_of(parts[part])))])
                cases.append([Replace(parts[part], ours, units=[0, 2], positions=0, rows=[1])])
        for edits in cases:
            assert torch.equal(denoise(model, ours.sampling, edits).images, ours.images), edits

    def test_its_own_prompt(self, family, guided):
        """Donor rows with the same prompt: the same up to the order of sums in a batch of another size."""
        model, ours = described(family), base(family, guided)
        site = a_site(family)
        own = UnderPrompt(tuple(texts(family, 2)))
        edited = denoise(model, ours.sampling, [Replace(site, own), Replace(Site("prediction"), own)])
        torch.testing.assert_close(edited.images, ours.images, rtol=0, atol=1e-6)  # float32 schedulers
        assert edited.images.shape == ours.images.shape

    def test_other_rows_and_an_effect(self, family, guided):
        if family in ("sd", "sdxl") and not guided:
            return  # as many sites as all others together; what they share is tried with guidance
        model, ours = described(family), base(family, guided)
        sites = every_site(model)
        for site in dict.fromkeys([sites[0], *{s.part: s for s in sites}.values()]):
            edited = denoise(model, ours.sampling, [Add(site, 0.5, rows=[1])]).images
            assert torch.equal(edited[0], ours.images[0]), site
            if not (family == "sdxl" and str(site) == "text.final_norm"):
                assert not torch.equal(edited[1], ours.images[1]), site


@pytest.mark.parametrize("family", TEXTUAL)
def test_prompt_and_negative_prompt_swapped(family):
    """The branch is where the layout says, whatever is written in it."""
    model, site = described(family), a_site(family)
    ours = base(family)
    texts_of = ours.sampling
    swapped = replace(texts_of, prompts=texts_of.negative, negative=texts_of.prompts)
    other = denoise(model, swapped, [], [site])
    assert torch.equal(other.at(site, 0, COND), ours.at(site, 0, UNCOND))
    assert torch.equal(other.at(site, 0, UNCOND), ours.at(site, 0, COND))
    assert not torch.equal(ours.at(site, 0, UNCOND), ours.at(site, 0, COND))
    here = When(branch=COND)
    scaled = denoise(model, texts_of, [Scale(site, 0.0, when=here)], [site])
    assert not scaled.at(site, 1, COND).any()
    assert scaled.at(site, 1, UNCOND).any()


def failing_at(call, own):
    """The same method, but for one call."""
    calls = []

    def method(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("in the middle")
        return own(self, *args, **kwargs)

    return method


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_and_after_an_exception(family, monkeypatch):
    model = described(family)
    edits = [
        Add(a_site(family), 0.3, when=When(steps=[1], branch=COND)),
        Add(Site("latents"), 0.1, when=When(steps=[0])),
    ]
    rows = Denoising(model, sampling(family), [edits])
    before = state_of(model)
    first = rows.run([a_site(family)])
    assert state_of(model) == before
    for owner, method in ((module.Ops, "apply"), (module.Kept, "keep")):  # in an edit, in a capture
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, failing_at(3, vars(owner)[method]))
            with pytest.raises(RuntimeError, match="in the middle"):
                rows.run([a_site(family)])
        assert state_of(model) == before, method
    scheduler = type(model.pipeline.scheduler)
    step = scheduler.step

    def interrupted(self, *args, **kwargs):
        if self._step_index if hasattr(self, "_step_index") else interrupted.calls:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return step(self, *args, **kwargs)

    interrupted.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rows.run()
    assert interrupted.calls > 0
    assert state_of(model) == before
    again = rows.run([a_site(family)])
    assert torch.equal(again.images, first.images)
    assert torch.equal(again[a_site(family)], first[a_site(family)])
    assert torch.equal(run(model, sampling(family)).images, base(family).images)


def test_a_step_that_was_patched_before_stays(monkeypatch):
    model = described("dit")
    own = model.pipeline.scheduler.step
    monkeypatch.setattr(model.pipeline.scheduler, "step", own, raising=False)
    run(model, 3, steps=1, guidance=1.0)
    assert vars(model.pipeline.scheduler)["step"] is own


# -- by hand -----------------------------------------------------------------------------------------------------

# Where each site lies: module of the denoiser, side, item of a tuple, spatial?, first channel, width, heads.
HAND = {
    "sd": {
        "down.0.1.resnet_out": ("down_blocks.0.resnets.1", "out", 0, True),
        "down.1.0.block_out": ("down_blocks.1.attentions.0", "out", 0, True),
        "down.1.block_out": ("down_blocks.1.downsamplers.0", "out", 0, True),
        "mid.0.cross_attn_out": ("mid_block.attentions.0.transformer_blocks.0.attn2", "out", 0, False),
        "mid.1.resnet_out": ("mid_block.resnets.1", "out", 0, True),
        "up.1.0.skip": ("up_blocks.1.resnets.0", "in", 0, True, 16, 16),
        "up.2.2.skip": ("up_blocks.2.resnets.2", "in", 0, True, 8, 8),
        "up.1.2.self_z": ("up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0", "in", 0, False, 0, None, 2),
        "up.2.1.cross_k": ("up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k", "out", 0, False, 0, None, 2),
        "up.2.1.cross_z": ("up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0", "in", 0, False, 0, None, 2),
        "up.1.1.ff_out": ("up_blocks.1.attentions.1.transformer_blocks.0.ff", "out", 0, False),
        "up.1.block_out": ("up_blocks.1.upsamplers.0", "out", 0, True),
        "time_embed": ("time_embedding", "out", 0, None),
        "latents": ("", "in", 0, True),
        "prediction": ("", "out", 0, True),
    },
    "sdxl": {
        "down.2.1.0.cross_attn_out": ("down_blocks.2.attentions.1.transformer_blocks.0.attn2", "out", 0, False),
        "up.0.2.1.block_out": ("up_blocks.0.attentions.2.transformer_blocks.1", "out", 0, False),
        "up.0.1.block_out": ("up_blocks.0.attentions.1", "out", 0, True),
        "mid.0.1.self_q": ("mid_block.attentions.0.transformer_blocks.1.attn1.to_q", "out", 0, False, 0, None, 4),
        "up.2.0.skip": ("up_blocks.2.resnets.0", "in", 0, True, 16, 8),
    },
    "pixart": {
        "block.1.cross_attn_out": ("transformer_blocks.1.attn2", "out", 0, False),
        "block.2.cross_z": ("transformer_blocks.2.attn2.to_out.0", "in", 0, False, 0, None, 2),
        "block.0.block_out": ("transformer_blocks.0", "out", 0, False),
        "prediction": ("", "out", 0, True),
    },
    "dit": {
        "block.1.self_attn_out": ("transformer_blocks.1.attn1", "out", 0, False),
        "block.2.ff_out": ("transformer_blocks.2.ff", "out", 0, False),
        "block.0.self_v": ("transformer_blocks.0.attn1.to_v", "out", 0, False, 0, None, 2),
        "latents": ("", "in", 0, True),
    },
    "sd3": {
        "block.1.joint_attn_out": ("transformer_blocks.1.attn", "out", 0, False),
        "block.0.block_out": ("transformer_blocks.0", "out", 1, False),
        "block.2.block_out": ("transformer_blocks.2", "out", 1, False),
        "block.0.self_attn_out": ("transformer_blocks.0.attn2", "out", 0, False),
    },
    "flux": {
        "block.1.joint_attn_out": ("transformer_blocks.1.attn", "out", 0, False),
        "block.0.block_out": ("transformer_blocks.0", "out", 1, False),
        "single.1.block_out": ("single_transformer_blocks.1", "out", 1, False),
        "prediction": ("", "out", 0, False),
        "latents": ("", "in", 0, False),
    },
}  # fmt: skip

# Rows of a batch of 2 in one branch: (call of the step, first row). By hand: what the six pipelines' sources say.
BRANCH_ROWS = {family: {UNCOND: (0, 0), COND: (0, 2)} for family in FAMILIES} | {
    "dit": {COND: (0, 0), UNCOND: (0, 2)}, "flux": {COND: (0, 0), UNCOND: (1, 0)},
}  # fmt: skip
CALLS_PER_STEP = dict.fromkeys(FAMILIES, 1) | {"flux": 2}


@contextmanager
def hand_hook(family, where, step, branch, row, change):
    """`change` edits [pos, head, channel] of one row in place, at one step in one branch: a plain counting hook."""
    path, side, item, spatial, first, width, heads = (*where, 0, None, None)[:7] if len(where) < 7 else where
    network = described(family).network
    owner = network.get_submodule(path)
    call, start = BRANCH_ROWS[family][branch]
    wanted, seen = step * CALLS_PER_STEP[family] + call, [-1]

    def count(_module, _args, _kwargs):
        seen[0] += 1

    def edited(x):
        if seen[0] != wanted:
            return x
        x = x.clone()
        one = x[start + row]
        cells = one.flatten(1).T.clone() if spatial else one[None].clone() if spatial is None else one.clone()
        columns = cells[:, first : None if width is None else first + width]
        shaped = columns.unflatten(-1, (heads or 1, -1)).clone()
        change(shaped)
        columns.copy_(shaped.flatten(-2))
        x[start + row] = cells.T.reshape(one.shape) if spatial else cells.reshape(one.shape)
        return x

    def before(_module, args, kwargs):
        if args:
            return (edited(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])}

    def after(_module, _args, output):
        if torch.is_tensor(output):
            return edited(output)
        if isinstance(output, tuple):
            return (*output[:item], edited(output[item]), *output[item + 1 :])
        output.sample = edited(output.sample)
        return output

    handles = [network.register_forward_pre_hook(count, with_kwargs=True)]
    hook = owner.register_forward_hook if side == "out" else owner.register_forward_pre_hook
    handles.append(hook(after) if side == "out" else hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, sites in HAND.items() for name in sites])
def test_a_hook_by_hand(family, name):
    model, site, where = described(family), Site.parse(name), HAND[family][name]
    heads = model.heads_of(site)
    one_cell = site.part == "time_embed"
    cells, units = ([0] if one_cell else [0, 3, -2]), [1, 3]
    # 1. some channels (of every head) at some cells, in one branch of one step
    for step, branch in ((0, UNCOND), (1, COND)):
        edit = Scale(site, -1.5, positions=cells, units=units, rows=[1], when=When(steps=[step], branch=branch))
        ours = run(model, sampling(family), [edit]).images

        def change(x, cells=cells, units=units):
            for cell in cells:
                x[cell, :, units] *= -1.5

        with hand_hook(family, where, step, branch, 1, change):
            theirs = native(family, [0, 0])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert (ours - base(family).images).abs().max() > 1e-7
    # 2. a vector added to whole cells, of one head where there are heads
    width = model.width_of(site)
    vector = torch.linspace(-1, 1, width, dtype=torch.float64)
    where_in = replace(site, head=1) if heads else site
    edit = Add(where_in, vector, scale=0.5, rows=[0], when=When(steps=[1], branch=COND))
    ours = run(model, sampling(family), [edit]).images

    def add(x):
        x[:, 1 if heads else 0] += 0.5 * vector

    with hand_hook(family, where, 1, COND, 0, add):
        theirs = native(family, [0, 0])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("family", "address", "path"), [
    ("sd", "up.1.1", "up_blocks.1.attentions.1"), ("sdxl", "down.2.0", "down_blocks.2.attentions.0"),
])  # fmt: skip
def test_an_update_by_hand(family, address, path):
    """block_update: what an attention stage changes, switched off in one branch of one step."""
    model, site = described(family), Site("block_update", address)
    ours = run(model, sampling(family), [Ablate(site, rows=[1], when=When(steps=[1], branch=COND))], [site])
    owner, calls = model.network.get_submodule(path), []

    def hook(_module, args, output):
        calls.append(1)
        x = output[0].clone()
        if len(calls) == 2:
            x[3] = args[0][3]
        return (x,)

    handle = owner.register_forward_hook(hook)
    theirs = native(family, [0, 0])
    handle.remove()
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-12)
    assert not torch.equal(ours.images, base(family).images)
    assert not ours.at(site, 1, COND)[1].any()
    before = base(family)
    torch.testing.assert_close(  # and the states are consistent: what enters the last transformer block's stage
        before.at(site, 0, COND) + _entering(model, path, sampling(family))[0][2:4],
        before.at(Site("block_out", address), 0, COND), rtol=0, atol=1e-12,
    )  # fmt: skip


def _entering(model, path, what):
    seen = []
    handle = model.network.get_submodule(path).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].flatten(2).transpose(1, 2))
    )
    run(model, what)
    handle.remove()
    return seen


TEXT_HAND = {
    "sd": [("text.embed", "text_encoder", "embeddings.token_embedding"), ("text.1.mlp_out", "text_encoder", "encoder.layers.1.mlp"),
           ("text.2.resid_post", "text_encoder", "encoder.layers.2"), ("text.final_norm", "text_encoder", "final_layer_norm")],
    "sdxl": [("text2.embed", "text_encoder_2", "embeddings.token_embedding"), ("text.1.resid_post", "text_encoder", "encoder.layers.1"),
             ("text2.0.attn_out", "text_encoder_2", "encoder.layers.0.self_attn")],
    "pixart": [("text.embed", "text_encoder", "encoder.embed_tokens"), ("text.1.resid_post", "text_encoder", "encoder.block.1")],
    "sd3": [("text3.embed", "text_encoder_3", "encoder.embed_tokens"), ("text.1.attn_out", "text_encoder", "encoder.layers.1.self_attn")],
    "flux": [("text2.0.resid_post", "text_encoder_2", "encoder.block.0"), ("text.embed", "text_encoder", "embeddings.token_embedding")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "name", "encoder", "path"), [(f, *case) for f, cases in TEXT_HAND.items() for case in cases]
)
def test_a_text_hook_by_hand(family, name, encoder, path):
    """One token of one row's prompt, not of its negative prompt: the hook goes by the ids that pass."""
    model = described(family)
    vector = torch.linspace(-1, 2, model.width_of(Site.parse(name)), dtype=torch.float64)
    ours = run(model, sampling(family), [Add(Site.parse(name), vector, positions=1, rows=[1], when=When(branch=COND))])
    text = getattr(model.pipeline, encoder)
    inner = getattr(text, "text_model", text)
    prompt = [*_ids(model, encoder, PROMPTS[1])][:3]
    row = []

    def note(_module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        row[:] = [k for k, line in enumerate(ids.tolist()) if line[:3] == prompt]

    def hook(_module, _args, output):
        x = (output if torch.is_tensor(output) else output[0]).clone()
        for k in row:
            x[k, 1] += vector
        return x if torch.is_tensor(output) else (x, *output[1:])

    handles = [
        text.register_forward_pre_hook(note, with_kwargs=True),
        inner.get_submodule(path).register_forward_hook(hook, prepend=True),
    ]
    theirs = native(family, [0, 0])
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-12)
    assert torch.equal(ours.images[0], base(family).images[0])
    assert not torch.equal(ours.images[1], base(family).images[1])


def _ids(model, encoder, prompt):
    return getattr(model.pipeline, encoder.replace("text_encoder", "tokenizer"))(prompt).input_ids


# -- another prompt ----------------------------------------------------------------------------------------------


def by_hand(model, donors, donor_negatives, copy, steps_on=(0, 1)):
    """Stable Diffusion's loop in ten lines, two rows; at each step two donors run on the same x_t, and `copy` hooks.

    The batch is [uncond base, uncond donors, cond base, cond donors], two rows each.
    """
    pipe = model.pipeline
    texts_in_order = (NEGATIVES[:2], donor_negatives, PROMPTS[:2], donors)
    embeds = torch.cat([pipe.encode_prompt(texts, "cpu", 1, False)[0] for texts in texts_in_order])
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([noise, noise])
    pipe.scheduler.set_timesteps(2)
    for k, t in enumerate(pipe.scheduler.timesteps):
        handles = copy() if k in steps_on else []
        out = pipe.unet(torch.cat([x, x, x, x]), t, encoder_hidden_states=embeds).sample
        for handle in handles:
            handle.remove()
        u, _, c, _ = out.split(2)
        x = pipe.scheduler.step(u + 4.0 * (c - u), t, x).prev_sample
    return (pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("steps", [(0, 1), (1,)])
@pytest.mark.parametrize("branch", [COND, None])
def test_state_matched(steps, branch):
    model = described("sd")
    names = {"up.1.1.cross_attn_out": "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
             "mid.0.cross_attn_out": "mid_block.attentions.0.transformer_blocks.0.attn2"}  # fmt: skip
    other = tuple(PROMPTS[::-1][:2])
    when = When(steps=steps, branch=branch)
    edits = [Replace(Site.parse(name), UnderPrompt(other), when=when) for name in names]
    ours = run(model, sampling("sd"), edits)

    def copy():
        def hook(_module, _args, output):
            x = output.clone()
            x[4:6] = output[6:]
            if branch is None:
                x[:2] = output[2:4]
            return x

        return [model.network.get_submodule(path).register_forward_hook(hook) for path in names.values()]

    with torch.no_grad():
        theirs = by_hand(model, list(other), NEGATIVES[:2], copy, steps)
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-12)
    assert (ours.images - base("sd").images).abs().max() > 1e-5


def test_state_matched_swap_of_one_row():
    """A subspace, some cells, one row: the other row has no donor and stays as it is."""
    model, site = described("sd"), Site("resnet_out", "up.1.0")
    basis = basis_of(16, 2)
    edit = Swap(site, UnderPrompt("grey cat", negative="red"), basis, positions=[1, 5], rows=[1])
    ours = run(model, sampling("sd"), [edit])

    def copy():
        def hook(_module, _args, output):
            x = output.clone()
            for row, donor in ((1, 3), (5, 7)):
                cells, theirs = x[row].flatten(1), output[donor].flatten(1)
                for cell in (1, 5):
                    cells[:, cell] += basis @ (basis.T @ (theirs[:, cell] - cells[:, cell]))
            return x

        return [model.network.get_submodule("up_blocks.1.resnets.0").register_forward_hook(hook)]

    with torch.no_grad():
        theirs = by_hand(model, [PROMPTS[0], "grey cat"], [NEGATIVES[0], "red"], copy)
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-12)
    assert len(Denoising(model, sampling("sd"), [[edit]]).sampling) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_state_and_trajectory(family):
    """At the first step both are the same edit, on the same x_T; later the trajectory's value carries its state."""
    model, site = described(family), a_site(family)
    donors = texts(family, 3)[2:]
    negative = None if family == "dit" else NEGATIVES[:1]
    one = sampling(family, 1, prompts=texts(family, 1), negative=negative)
    other = run(model, sampling(family, 1, prompts=donors, negative=negative), [], [site])
    for step, same in ((0, True), (1, False)):
        here = When(steps=[step])
        state = run(model, one, [Replace(site, UnderPrompt(donors[0]), when=here)]).images
        trajectory = run(model, one, [Replace(site, other, when=here)]).images
        assert ((state - trajectory).abs().max() < 1e-6) == same, step
        assert (state - run(model, one).images).abs().max() > 1e-5


@pytest.mark.parametrize("family", TEXTUAL)
def test_a_full_cut_is_the_other_run(family):
    """Everything that carries the prompt, taken from another run, gives the other run's picture."""
    model = described(family)
    one = sampling(family, 1, negative=NEGATIVES[:1])
    other = run(model, sampling(family, 1, prompts=PROMPTS[2:], negative=NEGATIVES[:1]), [], [Site("prediction")])
    assert torch.equal(run(model, one, [Replace(Site("prediction"), other)]).images, other.images)
    state = run(model, one, [Replace(Site("prediction"), UnderPrompt(PROMPTS[2]))])
    torch.testing.assert_close(state.images, other.images, rtol=0, atol=1e-6)
    if family in ("sd", "sdxl", "pixart"):  # cross-attention is all that reads the prompt
        if family == "sdxl":
            return  # but for its pooled embedding
        edits = [Replace(site, UnderPrompt(PROMPTS[2])) for site in model.sites("cross_attn_out")]
        torch.testing.assert_close(run(model, one, edits).images, other.images, rtol=0, atol=1e-6)


def test_donors_follow_edits_of_the_state():
    """x_t of a donor is the edited row's own: with the latents moved, a prediction taken whole is the moved one's."""
    model = described("sd")
    one = sampling("sd", 1, negative=NEGATIVES[:1])
    moved = [Add(Site("latents"), 0.3, when=When(steps=[1]))]
    prediction = Replace(Site("prediction"), UnderPrompt(PROMPTS[2]))
    theirs = run(model, sampling("sd", 1, prompts=PROMPTS[2:], negative=NEGATIVES[:1]), moved).images
    torch.testing.assert_close(run(model, one, [*moved, prediction]).images, theirs, rtol=0, atol=1e-6)


# -- when -----------------------------------------------------------------------------------------------------------


def test_windows():
    model, site = described("sd"), a_site("sd")
    what = sampling("sd", 1, negative=NEGATIVES[:1], steps=4)
    plain = run(model, what, [], [site])
    assert plain.timesteps == (751, 501, 251, 1)
    assert list(plain.sigmas) == sorted(plain.sigmas, reverse=True)
    windows = {
        "steps": When(steps=[1, 2]), "timesteps": When(timesteps=(251.0, 501.0)),
        "sigmas": When(sigmas=(plain.sigmas[2], plain.sigmas[1])), "all": When(steps=[0, 1, 2], timesteps=(0.0, 600.0)),
    }  # fmt: skip
    images = {}
    for name, when in windows.items():
        edited = run(model, what, [Scale(site, 0.0, when=when)], [site])
        silent = [not edited.at(site, step, branch).any() for step in range(4) for branch in (UNCOND, COND)]
        assert silent == [False, False, True, True, True, True, False, False], name
        images[name] = edited.images
        kept = run(model, what, [], [site], when=when)
        assert kept.steps == (1, 2)
        assert torch.equal(kept[site], plain[site][1:3])
    assert all(torch.equal(image, images["steps"]) for image in images.values())
    only = run(model, what, [], [site], when=When(branch=COND))
    assert only.branches == (COND,)
    assert torch.equal(only[site][:, 0], plain[site][:, 1])


def test_positions_are_kept():
    model = described("sd")
    plain = base("sd")
    kept = run(model, plain.sampling, [], ["cross_attn_out", "text.embed"], positions=[0, -1])
    for site in model.sites("cross_attn_out"):
        assert torch.equal(kept[site], plain[site][:, :, :, [0, -1]])
    each = torch.tensor([[0, 1], [2, 3]])
    kept = run(model, plain.sampling, [], [a_site("sd")], positions=each)
    for row, cells in enumerate(each.tolist()):
        assert torch.equal(kept[a_site("sd")][:, :, row], plain[a_site("sd")][:, :, row, cells])
    assert torch.equal(
        run(model, plain.sampling, [], [Site("self_z", "mid.0", 1)])[Site("self_z", "mid.0", 1)],
        plain["self_z", "mid.0"][..., 1, :],
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name):
    """Identical to the native call, row by row the same, and edits act at the step that they name."""
    model, more = scheduled(name), dict(eta=1.0) if name == "ddim_stochastic" else {}
    call = arguments("sd", batch=2, num_inference_steps=3, **more)
    what = replace(sampling("sd", steps=3, model=model, **more), seeds=(0, 1))
    site = a_site("sd")
    plain = run(model, what, [], [site])
    assert torch.equal(plain.images, model.pipeline(**call).images)
    assert torch.equal(plain.images, run(model, what).images)
    alone = run(model, what.select([1])).images
    torch.testing.assert_close(alone[0], plain.images[1], rtol=0, atol=1e-5)  # float32 schedulers
    last = len(plain.timesteps) - 1
    assert last == {"pndm": 3, "heun": 4}.get(name, 2)
    assert torch.equal(run(model, what, [Replace(site, plain)]).images, plain.images)
    edited = run(model, what, [Scale(site, 0.0, rows=[1], when=When(steps=[last], branch=COND))], [site])
    assert [not edited.at(site, step, COND)[1].any() for step in range(last + 1)] == [False] * last + [True]
    assert torch.equal(edited.images[0], plain.images[0])
    if name in STOCHASTIC:
        other = run(model, replace(what, seeds=(0, 5))).images
        assert not torch.equal(other[1], plain.images[1])
    assert all(a >= b for a, b in zip(plain.sigmas, plain.sigmas[1:], strict=False))


# -- edits with a table of other examples -------------------------------------------------------------------------


def test_ablations_over_a_run():
    model, site = described("sd"), a_site("sd")
    plain = base("sd")
    mean = run(model, plain.sampling, [Ablate(site, "mean", over=plain, rows=[1])], [site])
    each = run(model, plain.sampling, [Ablate(site, "mean", over=plain, per_position=True)], [site])
    other = run(model, plain.sampling, [Ablate(site, "resample", over=plain)], [site])
    for branch in (UNCOND, COND):
        own = plain.at(site, 0, branch)
        torch.testing.assert_close(mean.at(site, 0, branch)[1], own.mean((0, 1)).expand_as(own[1]))
        torch.testing.assert_close(each.at(site, 0, branch)[0], own.mean(0))
        assert torch.equal(other.at(site, 0, branch), own.flip(0))


def test_edits_act_in_list_order():
    model, site = described("sd"), a_site("sd")
    here = base("sd").at(site, 0, COND)
    for edits, expected in (
        ([Add(site, 1.0), Scale(site, 2.0)], 2 * (here + 1)),
        ([Scale(site, 2.0), Add(site, 1.0)], 2 * here + 1),
        ([Replace(site, UnderPrompt("cat")), Scale(site, 0.0)], 0 * here),
    ):
        found = run(model, base("sd").sampling, edits, [site]).at(site, 0, COND)
        torch.testing.assert_close(found, expected)


# -- refusals -----------------------------------------------------------------------------------------------------


def refused(edits=(), capture=(), family="sd", error=InterpError, match="", what=None, monkeypatch=None, **more):
    """The run is refused before the pipeline's first step is taken."""
    model = described(family)
    steps = []
    scheduler = model.pipeline.scheduler
    own = scheduler.step
    scheduler.step = lambda *args, **kwargs: steps.append(1) or own(*args, **kwargs)
    try:
        with pytest.raises(error, match=match):
            denoise(model, what or sampling(family), list(edits), capture, **more)
    finally:
        del scheduler.step
    assert not steps


SITE = Site("self_attn_out", "up.1.1")
EDITS = {
    "a step beyond": ([Scale(SITE, 0.0, when=When(steps=[0, 2]))], InterpError, r"names steps \[2\]; this run has 0 to 1"),
    "a step before": ([Scale(SITE, 0.0, when=When(steps=[-1]))], InterpError, r"names steps \[-1\]"),
    "no timestep": ([Scale(SITE, 0.0, when=When(timesteps=(600.0, 700.0)))], InterpError, "is in no pass.*timesteps 501 to 1"),
    "no sigma": ([Scale(SITE, 0.0, when=When(sigmas=(50.0, 60.0)))], InterpError, "is in no pass.*σ/α 1.62"),
    "no pass of both": ([Scale(SITE, 0.0, when=When(steps=[0], timesteps=(0.0, 10.0)))], InterpError, "is in no pass"),
    "knockout": ([Knockout(1, keys=0)], SiteError, "no block '1'"),
    "a block": ([Scale(Site("ff_out", "up.1.9"), 0.0)], SiteError, r"no block 'up.1.9'. Did you mean 'up.1"),
    "a part": ([Scale(Site("ff_out", "down.2.0"), 0.0)], SiteError, "no 'ff_out' at 'down.2.0'. It has: resnet_out"),
    "a head": ([Scale(Site("self_z", "mid.0", 2), 0.0)], SiteError, "2 heads there, numbered 0 to 1"),
    "a language model's part": ([Scale(Site("resid_pre", 1), 0.0)], SiteError, "no block '1'"),
    "a cell": ([Scale(SITE, 0.0, positions=24)], InterpError, "position 24 is outside"),
    "a row": ([Scale(SITE, 0.0, rows=[2])], InterpError, r"rows \[2\] of a batch of 2"),
    "a unit": ([Scale(SITE, 0.0, units=[16])], InterpError, "units 16 to 16 of a width of 16"),
    "a shape": ([Add(SITE, torch.ones(7))], ShapeError, r"has shape \[7\]; it must broadcast to \[row=2, position=24, 16\]"),
    "not a number": ([Add(SITE, float("nan"))], ShapeError, "NaN or infinite"),
    "infinite": ([Replace(SITE, torch.full((16,), torch.inf))], ShapeError, "NaN or infinite"),
    "a factor": ([Scale(SITE, float("inf"))], ShapeError, "must be finite"),
    "a basis": ([Swap(SITE, 0.0, torch.ones(16, 2))], ShapeError, "not orthonormal"),
    "text at a step": ([Scale(Site("embed", "text"), 0.0, when=When(steps=[0]))], InterpError, "before the first step"),
    "text of another prompt": ([Replace(Site("embed", "text"), UnderPrompt("cat"))], InterpError, "sees no x_t"),
    "latents of another prompt": ([Replace(Site("latents"), UnderPrompt("cat"))], InterpError, "is the state itself"),
    "a token": ([Scale(Site("cross_k", "mid.0"), 0.0, positions=12)], InterpError, "position 12 is outside"),
    "unknown words": ([Replace(SITE, UnderPrompt("a zebra"))], PairError, "knows no word 'zebra'"),
    "unknown negative": ([Replace(SITE, UnderPrompt("a cat", "zebra"))], PairError, "knows no word 'zebra'"),
    "three other prompts": ([Replace(SITE, UnderPrompt(("cat", "dog", "tree")))], InterpError, "3 prompts for 2 rows"),
    "a part of the other": ([Add(SITE, UnderPrompt("a cat"), scale=0.5)], InterpError, "only 1 is served"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_impossible_edits_are_refused(what):
    edits, error, match = EDITS[what]
    refused(edits, error=error, match=match)


def test_impossible_branches_are_refused():
    with pytest.raises(InterpError, match="branch='cond': interp.Branch.COND"):
        When.__post_init__(SimpleNamespace(branch="cond"))  # tests check types: a call would not get so far
    plain = sampling("sd", guided=False)
    edit = Scale(SITE, 0.0, when=When(branch=UNCOND))
    refused([edit], match="in branch 'uncond', which this run does not have", what=plain)
    refused([], [SITE], match="in branch 'uncond', which this run does not have", what=plain, when=When(branch=UNCOND))
    with_negative = Replace(SITE, UnderPrompt("a cat", negative="dark"))
    refused([with_negative], match="has the negative prompt 'dark', this run none", what=plain)
    bare = described("sdxl").sampling(PROMPTS[:2], steps=2, **options("sdxl"))
    text = Scale(Site("embed", "text"), 0.0, when=When(branch=UNCOND))
    refused([text], family="sdxl", match="encodes no text in that branch", what=bare)


def test_impossible_captures_are_refused(monkeypatch):
    refused([], [SITE], match=r"The capture names steps \[7\]", when=When(steps=[0, 7]))
    refused([], [SITE], match="The capture is in no pass", when=When(timesteps=(2.0, 3.0)))
    refused(
        [],
        ["cross_attn_ou"],
        error=SiteError,
        match="no part 'cross_attn_ou' in a denoiser. Did you mean 'cross_attn_out'",
    )
    refused([], ["joint_attn_out"], error=SiteError, match="has no 'joint_attn_out' anywhere. It has: resnet_out")
    refused([], ["up.1.1.skipp"], error=SiteError, match="Did you mean 'skip'")
    refused([], [SITE], match="position 24 is outside", positions=[24])
    with pytest.raises(InterpError, match="`capture` is a list"):
        denoise(described("sd"), sampling("sd"), [], "cross_attn_out")
    monkeypatch.setattr(module, "free_bytes", lambda _device: 2000)
    refused([], ["cross_attn_out"], match="These captures take .* MiB, and .* are free")


def test_several_transformer_blocks_are_named_one_by_one():
    site = Site("cross_attn_out", "up.0.1")
    match = "no 'cross_attn_out' at 'up.0.1'. Name one of up.0.1.0, up.0.1.1"
    refused([Scale(site, 0.0)], family="sdxl", error=SiteError, match=match)


def test_sources_that_do_not_fit_are_refused():
    model, what = described("sd"), sampling("sd")
    sizes = {"height": 24, "width": 16}
    sources = {
        "has 3 rows, this one 2": run(model, sampling("sd", 3), [], [SITE]),
        "has other timesteps": run(model, sampling("sd", steps=3), [], [SITE]),
        "was not captured in this run": run(model, what, [], [Site("ff_out", "mid.0")]),
        "at step 1 in branch 'uncond' was not captured": run(model, what, [], [SITE], when=When(steps=[0])),
        "at step 0 in branch 'uncond' was not captured": run(model, what, [], [SITE], when=When(branch=COND)),
        "has only some positions": run(model, what, [], [SITE], positions=[0]),
        "has 6×4 of them, this one 4×6": run(model, sampling("sd", **sizes), [], [SITE]),
    }
    for match, source in sources.items():
        for edit in (Replace(SITE, source), Swap(SITE, source, basis_of(16))):
            refused([edit], error=(ShapeError, SiteError), match=match)
    unguided = run(model, sampling("sd", guided=False), [], [SITE])
    refused([Replace(SITE, unguided)], error=SiteError, match="in branch 'uncond' was not captured")
    only = [Replace(SITE, unguided, when=When(branch=COND))]
    assert run(model, what, only).images.shape == (2, 3, 16, 24)
    one = run(model, sampling("sd", 1, negative=NEGATIVES[:1]), [], [SITE])  # one row serves all
    edited = run(model, what, [Replace(SITE, one)], [SITE])
    assert torch.equal(edited.at(SITE, 0, COND), one.at(SITE, 0, COND).expand(2, -1, -1))


def test_what_silences_hooks_later_is_refused():
    """Between loading and running: fused projections, a cache, compilation, on the very same pipeline."""
    sd = pipeline("sd")
    model = describe_pipeline(sd, "sd")
    sd.fuse_qkv_projections(vae=False)
    from interp.errors import LoadError

    with pytest.raises(LoadError, match="fused projections at .*attn1"):
        run(model, "red dot")
    sd.unet = pipeline("sd").unet
    model = describe_pipeline(sd, "sd")
    sd.unet.mid_block._compiled_call_impl = lambda *args: args  # what Module.compile sets
    with pytest.raises(LoadError, match="compiled by torch.compile at mid_block"):
        run(model, "red dot")


def test_a_skipped_step_is_an_error():
    """A block that is left out in one step: its edit would be silently lost there."""
    model = described("dit")
    block = model.network.transformer_blocks[1]
    own, calls = block.forward, []

    class Sometimes(torch.nn.ModuleList):
        def __iter__(self):
            calls.append(1)
            return iter([m for m in super().__iter__() if m is not block or len(calls) != 2])

    blocks = model.network.transformer_blocks
    model.network.transformer_blocks = Sometimes(blocks)
    site = Site("ff_out", "block.1")
    what = replace(sampling("dit"), options={})
    try:
        for edits, capture, match in (
            (
                [Scale(site, 0.5, when=When(branch=COND))],
                (),
                "edit at block.1.ff_out met nothing in step 1, branch 'cond'",
            ),
            ((), [site], "Nothing was captured at block.1.ff_out in step 1"),
        ):
            calls.clear()
            with pytest.raises(UnfiredError, match=match):
                denoise(model, what, edits, capture)
        calls.clear()
        denoise(model, what, [Scale(site, 0.5, when=When(steps=[0]))])  # where it was not lost
    finally:
        model.network.transformer_blocks = blocks
    assert block.forward == own


def test_calls_beyond_the_layout_are_an_error():
    model = described("sd3")
    what = model.sampling("red dot", steps=2, skip_guidance_layers=[0], skip_layer_guidance_stop=0.9, **options("sd3"))
    with pytest.raises(InterpError, match=r"Call 1 of the denoiser in step \d has 1 rows; this run has 1, guided"):
        run(model, what, [], [Site("ff_out", "block.1")])


def test_a_run_that_ends_early_is_an_error():
    model = described("sd")

    def stop(pipe, _step, _t, kwargs):
        pipe._interrupt = True
        return kwargs

    with pytest.raises(UnfiredError, match="ended|called"):
        run(model, "red dot", steps=3, callback_on_step_end=stop, **options("sd"))


def test_values_of_a_denoising_run_mean_nothing_to_a_language_model():
    model, source = language_model("llama"), base("dit")
    site = Site("resid_pre", 1)
    for edit in (Replace(site, UnderPrompt("a cat")), Replace(site, source), Swap(site, source, basis_of(24)),
                 Ablate(site, "mean", over=source)):  # fmt: skip
        with pytest.raises(InterpError, match="llama runs no denoising"):
            run(model, torch.tensor([[1, 2, 3]]), [edit])


def test_settings_of_the_other_kind_of_model_are_refused():
    with pytest.raises(InterpError, match="no logits"):
        run(described("sd"), "red dot", logits=False)


# -- nnsight -----------------------------------------------------------------------------------------------------


def test_against_nnsight(tmp_path):
    """Its DiffusionModel around the same weights: an edit of one block at one step, of both branches."""
    pytest.importorskip("nnsight")
    from nnsight.modeling.diffusion import DiffusionModel

    made = pipeline("sd", torch.float32)
    made.save_pretrained(tmp_path / "sd", safe_serialization=True)
    theirs = DiffusionModel(str(tmp_path / "sd"), dispatch=True)
    theirs.pipeline.set_progress_bar_config(disable=True)
    model = describe_pipeline(made, "sd")
    call = dict(
        height=16, width=24, num_inference_steps=2, guidance_scale=4.0, negative_prompt=NEGATIVES[:1], output_type="pt"
    )
    generator = torch.Generator().manual_seed(0)
    with theirs.generate(PROMPTS[:1], **call, generator=[generator]) as tracer:
        for _step in tracer.iter[1]:
            theirs.unet.mid_block.attentions[0].transformer_blocks[0].attn2.output[:] *= -2
        result = tracer.result.save()
    site = Site("cross_attn_out", "mid.0")
    rows = model.sampling(PROMPTS[0], negative=NEGATIVES[0], steps=2, guidance=4.0, height=16, width=24)
    ours = run(model, rows, [Scale(site, -2.0, when=When(steps=[1]))])
    assert (ours.images - result.images).abs().max() < 1e-5
    assert (ours.images - run(model, rows).images).abs().max() > 1e-4
