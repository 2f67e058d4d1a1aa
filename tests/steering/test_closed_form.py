"""Closed-form edits: the normal equations by hand, edits that must change nothing, what is kept, files, refusals."""

import json

import numpy as np
import pytest
import torch
from models.denoisers import described, state_of
from models.pipelines import pipeline
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from interp.errors import InterpError, LoadError, PairError, ShapeError, SiteError
from interp.interventions.denoise import denoise
from interp.models.guidance import Branch
from interp.models.load import load
from interp.models.projections import projections, states_read
from interp.models.reweighted import weights_of
from interp.steering import edit_concept, load_edit, random_edit
from interp.steering.closed_form import aligned, ridge_update
from interp.steering.weight_edit import LowRank, edited_with

CONTEXTS = ["a {} circle", "two {} stars", "the small {} cat under a tree"]
KEEP = ["a blue square", "the cat", ""]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


# -- the ridge solution --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_weight", [0.0, 0.5, 3.0])
def test_the_update_solves_the_normal_equations(keep_weight):
    """W* = (mean v kᵀ + κ mean (W p*) pᵀ + λ W)(mean k kᵀ + κ mean p pᵀ + λ I)⁻¹, formed as the papers write it."""
    k, v, p, p0, w = (
        randn(7, 12),
        randn(7, 12, seed=1),
        randn(5, 12, seed=2),
        randn(5, 12, seed=3),
        randn(9, 12, seed=4),
    )
    lam = 0.01 * k.square().sum(1).mean()
    left = w @ v.T @ k / 7 + keep_weight * w @ p0.T @ p / 5 + lam * w
    right = k.T @ k / 7 + keep_weight * p.T @ p / 5 + lam * torch.eye(12, dtype=torch.float64)
    expected = torch.linalg.solve(right.T, left.T).T
    factors = ridge_update(k, v, p, p0, 0.01, keep_weight)
    torch.testing.assert_close(w + w @ factors[0] @ factors[1].T, expected, rtol=0, atol=1e-10)


def test_the_update_is_a_minimum():
    """Any other change of the same weight costs more, counted as the objective is written."""
    k, v, p, w = randn(6, 8), randn(6, 8, seed=1), randn(4, 8, seed=2), randn(5, 8, seed=3)
    lam = 0.1 * k.square().sum(1).mean()

    def cost(delta):
        return (
            ((w + delta) @ k.T - w @ v.T).square().sum(0).mean()
            + 2 * (delta @ p.T).square().sum(0).mean()
            + lam * delta.square().sum()
        )

    left, right = ridge_update(k, v, p, p, 0.1, 2.0)
    best = w @ left @ right.T
    for seed in range(20):
        assert cost(best) < cost(best + 1e-3 * randn(5, 8, seed=100 + seed))


def test_one_key_by_hand():
    """One pair, nothing kept: C = (v − k) kᵀ / (kᵀk + λ), so k is moved by 1 / (1 + ridge) of the way."""
    k, v = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    left, right = ridge_update(k, v, k[:0], k[:0], 0.25, 1.0)
    torch.testing.assert_close(k + k @ right @ left.T, k + (v - k) / 1.25, rtol=0, atol=1e-12)
    assert left.shape == right.shape == (2, 1)


def test_what_is_orthogonal_to_every_key_is_read_as_before():
    k, v = randn(4, 10), randn(4, 10, seed=1)
    _, right = ridge_update(k, v, k[:0], k[:0], 1e-3, 0.0)
    outside = torch.linalg.svd(k).Vh[4:]  # the rest of the space
    assert (outside @ right).abs().max() < 1e-12
    assert (k @ right).abs().max() > 0.1


def test_the_rank_is_that_of_the_differences():
    k = randn(9, 12)
    v = k.clone()
    v[:2] = randn(2, 12, seed=1)
    left, right = ridge_update(k, v, randn(3, 12, seed=2), randn(3, 12, seed=2), 1e-3, 1.0)
    assert left.shape == (12, 2)
    torch.testing.assert_close(right.T @ right, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)


# -- the alignment -------------------------------------------------------------------------------------------


def test_tokens_correspond_around_phrases_of_different_length():
    # [s] a VAN GOGH cat [e] . .      [s] a PAINTING cat [e] . . .
    here, there = aligned(2, (4, 3), (8, 8), "all")
    assert list(zip(here, there, strict=True)) == [(0, 0), (1, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]
    assert aligned(2, (4, 3), (8, 8), "last") == ([3], [2])


# -- edits of pipelines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "where"),
    [("sd", ("cross_k", "cross_v")), ("sdxl", ("cross_k",)), ("pixart", ("cross_k", "cross_v")), ("sd3", ("text.0.attn_out",)), ("sd", ("text.0.attn_out", "text.1.mlp_out", "cross_v"))],
)  # fmt: skip
def test_an_edit_of_every_kind_of_pipeline(family, where):
    model = described(family)
    state, hashed = state_of(model), model.weights_hash
    edited = edit_concept(
        model, "red", "blue", where=where, contexts=CONTEXTS[:1], keep=[], ridge=1e-9, keep_weight=0.0
    )
    found = projections(model, where)
    assert set(edited.deltas) == {one.path for one in found} and edited.original is model
    assert edited.norm > 0.01
    # with hardly any ridge, and fewer pairs than dimensions, what the edited maps read of red is blue
    here = projections(edited, where)[-1]
    one = found[-1]
    red, blue = ([context.replace("{}", word) for context in CONTEXTS[:1]] for word in ("red", "blue"))
    with torch.no_grad():
        read = [
            (here, *states_read(edited, here, red)),
            (one, *states_read(model, one, red)),
            (one, *states_read(model, one, blue)),
        ]
        now, before, wanted = (at.module(states)[mask] for at, states, mask in read)
    assert (now - wanted).norm() < 0.5 * (before - wanted).norm()
    assert state_of(model) == state and load(model.pipeline, name="again").weights_hash == hashed


def test_the_deltas_are_the_ridge_solution_of_what_is_read():
    """Rebuilt from the tokenizer and the encoder, token by token, with the normal equations as the papers have them."""
    model = described("sd")
    edited = edit_concept(model, "red", "blue", contexts=CONTEXTS, keep=KEEP, ridge=0.02, keep_weight=0.7)

    def states(prompts):
        return model.embeddings(model.sampling(prompts), Branch.COND)["prompt_embeds"].flatten(0, 1)

    k, v, p = (
        states(x)
        for x in ([c.replace("{}", "red") for c in CONTEXTS], [c.replace("{}", "blue") for c in CONTEXTS], KEEP)
    )
    lam = 0.02 * k.square().sum(1).mean()
    gram = k.T @ k / len(k) + 0.7 * p.T @ p / len(p) + lam * torch.eye(16, dtype=torch.float64)
    for path, w in weights_of(model, edited.deltas).items():
        top = (w @ v.T) @ k / len(k) + 0.7 * (w @ p.T) @ p / len(p) + lam * w
        expected = torch.linalg.solve(gram.T, top.T).T
        torch.testing.assert_close(weights_of(edited, [path])[path], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("where", [("cross_k", "cross_v"), ("text.0.attn_out", "text.1.mlp_out", "cross_k")])
def test_a_concept_onto_itself_changes_no_bit(where):
    model = described("sd")
    edited = edit_concept(model, "red", "red", where=where, contexts=CONTEXTS, keep=KEEP)
    assert edited.norm == 0 and edited.weights_hash == model.weights_hash and edited.network is model.network
    sampling = model.sampling("a red circle", steps=2, height=16, width=16)
    assert torch.equal(denoise(edited, sampling).images, denoise(model, sampling).images)


def test_a_context_that_stands_for_the_whole_prompt_moves_its_picture_to_the_target():
    """Where pairs are few and the ridge small, the edited model draws red as the original draws blue."""
    model = described("sd")
    edited = edit_concept(model, "red", "blue", contexts=["a {} circle"], keep=[], ridge=1e-9, keep_weight=0.0)
    settings = dict(steps=2, guidance=1.0, height=16, width=16)
    red, blue, edit = (
        denoise(m, m.sampling(prompt, **settings)).images
        for m, prompt in ((model, "a red circle"), (model, "a blue circle"), (edited, "a red circle"))
    )
    assert (edit - blue).abs().max() < 1e-4 * (red - blue).abs().max()


def test_last_token_only():
    model = described("sd")
    edited = edit_concept(
        model, "red", "blue", contexts=["a {} circle"], keep=[], tokens="last", ridge=0.25, keep_weight=0.0
    )
    one = projections(model, ["cross_k"])[0]
    states = [states_read(model, one, [f"a {word} circle"])[0][0] for word in ("red", "blue")]
    moved = states[0][2] + (states[1][2] - states[0][2]) / 1.25
    new = weights_of(edited, [one.path])[one.path]
    torch.testing.assert_close(new @ states[0][2], one.module.weight.detach() @ moved, rtol=0, atol=1e-10)


def test_the_second_edit_knows_the_first_and_goes_back_to_it():
    model = described("sd")
    first = edit_concept(model, "red", "blue", contexts=CONTEXTS, keep=KEEP)
    second = edit_concept(first, "circle", "square", contexts=["a {}"], keep=KEEP)
    assert second.original is first and second.original.original is model


# -- the control ---------------------------------------------------------------------------------------------


def test_a_random_edit_has_the_same_norm_and_rank_of_every_weight():
    model = described("sd")
    edited = edit_concept(model, "red", "blue", contexts=CONTEXTS, keep=KEEP)
    control, again, other = (random_edit(edited, seed) for seed in (0, 0, 1))
    for path, delta in edited.deltas.items():
        drawn = control.deltas[path]
        assert drawn.rank == delta.rank and drawn.norm() == pytest.approx(delta.norm(), rel=1e-9)
        assert torch.equal(drawn.matrix(), again.deltas[path].matrix())
        cosine = (drawn.matrix() * delta.matrix()).sum() / delta.norm() ** 2
        assert abs(cosine) < 0.5 and not torch.equal(drawn.left, other.deltas[path].left)
    assert control.original is model


# -- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    edited = edit_concept(described("sd"), "red", "blue", contexts=CONTEXTS, keep=KEEP)
    edited.save(tmp_path / "edit.safetensors")
    return edited, tmp_path / "edit.safetensors"


def test_a_saved_edit_gives_the_same_weights(saved):
    edited, path = saved
    again = load_edit(described("sd"), path)
    assert again.weights_hash == edited.weights_hash and dict(again.record) == dict(edited.record)
    assert again.name == edited.name and again.norm == pytest.approx(edited.norm, rel=1e-12)


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_damaged_file_is_refused(saved, at):
    _, path = saved
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read|altered"):
        load_edit(described("sd"), path)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_cut_file_is_refused(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LoadError, match="cannot be read"):
        load_edit(described("sd"), path)


def test_a_record_that_was_changed_is_refused(saved):
    _, path = saved
    content = path.read_bytes()
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = load_tensors(content)
    path.write_bytes(save_tensors(tensors, about | {"record": about["record"].replace("blue", "gold")}))
    with pytest.raises(LoadError, match="altered"):
        load_edit(described("sd"), path)
    path.write_bytes(save_tensors(tensors, about | {"format": "another"}))
    with pytest.raises(LoadError, match="format 'another'"):
        load_edit(described("sd"), path)


def test_an_edit_of_other_weights_is_refused(saved):
    _, path = saved
    with pytest.raises(LoadError, match="the model that it was made for"):
        load_edit(load(pipeline("sd", seed=5), name="other"), path)
    with pytest.raises(LoadError, match="cannot be read"):
        load_edit(described("sd"), path.with_name("missing"))


def test_a_folder_that_is_missing(saved, tmp_path):
    with pytest.raises(OSError, match="no folder"):
        saved[0].save(tmp_path / "nowhere" / "edit.safetensors")


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(where=["cross_kk"]), SiteError, "no part 'cross_kk'"),
        (dict(where=[]), InterpError, "names nothing"),
        (dict(ridge=0.0), InterpError, "ridge must be above 0"),
        (dict(ridge=float("nan")), InterpError, "ridge must be above 0"),
        (dict(keep_weight=-1.0), InterpError, "keep_weight at least"),
        (dict(contexts=["a red circle"]), PairError, "has 0 places"),
        (dict(contexts=["{} and {}"]), PairError, "has 2 places"),
        (dict(contexts=[]), PairError, "No context"),
        (dict(target=" "), PairError, "name both"),
        (dict(concept="crimson"), PairError, "crimson"),
        (dict(keep=["a zebra"]), PairError, "zebra"),
    ],
)
def test_what_is_refused(changes, error, message):
    settings = dict(concept="red", target="blue", contexts=CONTEXTS, keep=KEEP) | changes
    with pytest.raises(error, match=message):
        edit_concept(described("sd"), settings.pop("concept"), settings.pop("target"), **settings)


def test_a_pipeline_without_text_is_refused():
    with pytest.raises(SiteError, match="classes and no text"):
        edit_concept(described("dit"), "red", "blue")


def test_factors_that_do_not_fit_are_refused():
    path = projections(described("sd"), ["mid.0.cross_k"])[0].path
    with pytest.raises(ShapeError, match="its change has factors"):
        edited_with(described("sd"), {path: LowRank(torch.zeros(3, 1), torch.zeros(16, 1))}, {}, "x")
    assert np.isclose(LowRank(torch.ones(2, 1), torch.ones(3, 1)).norm(), 6**0.5)
