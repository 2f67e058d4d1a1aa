"""Pictures as a causal model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interp.errors import PairError
from interp.shapes.caption import check_prompt, full_caption
from interp.tasks.causal_models.pictures import EXCHANGED, attributes_of, picture_interchange, picture_model


@pytest.mark.parametrize("variables", [(name,) for name in EXCHANGED] + [("colour", "cell")])
def test_the_scene_is_the_base_with_the_sources_attributes(variables):
    for e in picture_interchange(40, seed=3, variables=variables):
        expected = attributes_of(e.base)
        for variable, source in zip(variables, e.sources, strict=True):
            assert attributes_of(source)[variable] != expected[variable]
            expected[variable] = attributes_of(source)[variable]
        assert e.expected == expected
        changed = e.base
        for variable in variables:
            changed = changed.counterfactual(variable, expected[variable])
        assert e.scene == changed  # the nuisances too
        assert e.prompt == full_caption(e.base) and e.source_prompts == tuple(map(full_caption, e.sources))
        for prompt in (e.prompt, *e.source_prompts):
            check_prompt(prompt)


def contexts(task):
    return {(o.shape, o.size, s.background) for e in task for s in (e.base, *e.sources) for o in s.objects}


def test_splits_share_no_context_but_every_value():
    train, held_out = (picture_interchange(300, split=split) for split in ("train", "held out"))
    assert contexts(train) and contexts(held_out) and not contexts(train) & contexts(held_out)
    for at in range(3):
        assert {c[at] for c in contexts(train)} == {c[at] for c in contexts(held_out)}
    assert held_out.name == "picture-colour-held-out"


def test_values_can_be_held_out():
    task = picture_interchange(60, values={"colour": ("red", "blue"), "shape": ("ring",)})
    assert {e.expected["colour"] for e in task} == {"red", "blue"} and {e.expected["shape"] for e in task} == {"ring"}


def test_the_first_of_a_longer_task_and_its_repr():
    task = picture_interchange(9, seed=1)
    assert picture_interchange(4, seed=1).examples == task.examples[:4] == task[:4].examples
    assert list(task) == list(task.examples) and len(task) == 9
    with pytest.raises(TypeError, match="sliced"):
        task[0]
    first = task.examples[0]
    assert repr(task) == (
        f"PictureInterchange('picture-colour', 9 examples, seed=1; {first.prompt!r} with colour of "
        f"{first.source_prompts[0]!r} → {full_caption(first.scene)!r})"
    )
    assert repr(replace(task, examples=())) == "PictureInterchange('picture-colour', 0 examples, seed=1)"


def test_the_model_shows_what_is_said():
    said = {
        "said_colour": "red",
        "said_shape": "ring",
        "said_cell": "top left",
        "said_size": "large",
        "said_background": "pink",
    }
    assert picture_model().run(said)["picture"] == ("red", "ring", "top left", "large", "pink")


def test_refusals():
    with pytest.raises(PairError, match="No attribute was named to exchange"):
        picture_interchange(3, variables=())
    with pytest.raises(PairError, match="no attribute 'color'.*Did you mean 'colour'"):
        picture_interchange(3, variables=("color",))
    with pytest.raises(PairError, match="no attribute 'hue'"):
        picture_interchange(3, values={"hue": ("red",)})
    with pytest.raises(PairError, match="no colour 'mauve'"):
        picture_interchange(3, values={"colour": ("red", "mauve")})
    with pytest.raises(PairError, match=r"To draw colour, give at least 2 of its values; got \('red',\)"):
        picture_interchange(3, values={"colour": ("red",)})
    with pytest.raises(PairError, match=r"To draw size, give at least 1 of its values; got \(\)"):
        picture_interchange(3, values={"size": ()})
    with pytest.raises(PairError, match="no split 'test'"):
        picture_interchange(3, split="test")
    with pytest.raises(PairError, match="at least 1"):
        picture_interchange(0)
