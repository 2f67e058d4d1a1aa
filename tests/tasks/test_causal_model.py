"""Causal models: what follows, what would follow, and what cannot be one."""

from __future__ import annotations

from itertools import islice, product

import pytest

from interp.errors import InterpError
from interp.tasks.causal_model import CausalModel, Interchange, Variable

BITS = (False, True)


def model(**changed):
    """And-or: both = a and b; answer = both or c."""
    variables = {
        "answer": Variable("answer", BITS, ("both", "c"), lambda both, c: both or c),
        "both": Variable("both", BITS, ("a", "b"), lambda a, b: a and b),
        **{name: Variable(name, BITS) for name in "abc"},
        **changed,
    }
    return CausalModel("and-or", tuple(variables.values()), "answer", "by hand")


def setting(a, b, c):
    return {"a": bool(a), "b": bool(b), "c": bool(c)}


def test_a_run_gives_every_variable():
    for a, b, c in product(BITS, repeat=3):
        assert model().run(setting(a, b, c)) == {**setting(a, b, c), "both": a and b, "answer": (a and b) or c}


def test_variables_may_come_in_any_order_and_the_graph_knows_it():
    causal = model()
    assert causal.inputs == ("a", "b", "c") and causal.inner == ("both",)
    assert set(causal.graph.edges) == {("a", "both"), ("b", "both"), ("both", "answer"), ("c", "answer")}
    places = [variable.name for variable in causal.order]
    assert all(places.index(parent) < places.index(child) for parent, child in causal.graph.edges)
    assert repr(causal) == (
        "CausalModel('and-or', inputs a, b, c\n  both ← a, b  (False, True)\n  answer ← both, c  (False, True)\n"
        "  output: answer)"
    )


def test_a_fixed_variable_ignores_its_parents_but_not_its_children():
    values = model().run(setting(0, 0, 0), fixed={"both": True})
    assert values == {**setting(0, 0, 0), "both": True, "answer": True}
    assert model().run({"b": True, "c": False}, fixed={"a": True})["both"]


def test_an_interchange_takes_each_variable_from_its_own_source():
    values = model().interchange(setting(0, 1, 0), {"both": setting(1, 1, 0), "c": setting(0, 0, 0)})
    assert values == {**setting(0, 1, 0), "both": True, "answer": True}
    base = setting(1, 1, 0)
    for source in model().settings():
        expected = (source["a"] and source["b"]) or base["c"]
        assert model().interchange(base, {"both": source})["answer"] == expected
    assert model().interchange(base, {}) == model().run(base)


def test_a_source_may_be_an_interchange_itself():
    inner = Interchange(setting(1, 0, 0), {"b": setting(0, 1, 0)})  # a of the one, b of the other: both
    assert not model().run(inner.base)["both"] and not model().run(inner.sources["b"])["both"]
    assert model().interchange(setting(0, 0, 0), {"both": inner})["answer"] is True


def test_the_result_of_a_run_can_be_given_again():
    values = model().run(setting(1, 1, 0))
    assert model().run({**values, "both": False}) == values


def test_settings_are_all_there_are_and_samples_are_among_them():
    every = list(model().settings())
    assert len(every) == model().n_settings == 8 and len({tuple(s.values()) for s in every}) == 8
    assert every[1] == setting(0, 0, 1)
    drawn = model().sample(200, seed=3)
    assert drawn[:20] == model().sample(20, seed=3) != model().sample(20, seed=4)
    assert all(s in drawn for s in every)


@pytest.mark.parametrize("variables", [("both",), ("both", "c")])
def test_counterfactuals_take_turns_and_no_shortcut_is_right_in_more_than_half(variables):
    causal = model()
    drawn = list(islice(causal.counterfactuals(variables, seed=1), 100))
    assert drawn[:10] == list(islice(causal.counterfactuals(variables, seed=1), 10))
    copied = [0] * len(variables)
    for row, (base, sources, label) in enumerate(drawn):
        answer = causal.run(base)["answer"]
        assert label == causal.interchange(base, dict(zip(variables, sources, strict=True)))["answer"]
        assert (label != answer) == (row % 2 == 0)
        for i, source in enumerate(sources):
            copied[i] += causal.run(source)["answer"] == label
    assert max(copied) <= 50


def test_counterfactuals_of_a_draw_of_ones_own():
    def draw(random, base):
        drawn = setting(*(random.random() < 0.5 for _ in "abc"))
        return {**drawn, "b": True} if base is None else {**drawn, "a": not base["a"]}

    for base, (source,), _ in islice(model().counterfactuals(("both",), draw=draw), 20):
        assert base["b"] and source["a"] != base["a"]


def test_a_variable_that_never_changes_the_answer_is_refused():
    idle = Variable("idle", BITS, ("a",), lambda a: not a)
    with pytest.raises(InterpError, match="exchanging idle never changed the answer: there is nothing to learn"):
        next(model(idle=idle).counterfactuals(("idle",)))


def test_a_variable_that_decides_alone_has_nothing_to_keep():
    drawn = model().counterfactuals(("answer",))
    next(drawn)
    with pytest.raises(
        InterpError, match="exchanging answer never left an answer as it was .* decides the answer alone"
    ):
        next(drawn)


def test_check_shows_the_example_it_disagrees_with():
    model().check([(setting(1, 1, 0), True), (setting(0, 0, 0), False)])
    with pytest.raises(
        InterpError, match=r"disagrees with example 1: the right answer is True, the model's False.*a=True"
    ):
        model().check([(setting(1, 1, 0), True), (setting(1, 0, 0), True)])


def test_refusals_of_variables():
    with pytest.raises(InterpError, match="'a' has no values"):
        Variable("a", ())
    with pytest.raises(InterpError, match="'a' has the value 2 twice"):
        Variable("a", (1, 2, 2))
    with pytest.raises(InterpError, match="'a' has parents and no function"):
        Variable("a", BITS, ("b",))
    with pytest.raises(InterpError, match="'a' has a function and no parents"):
        Variable("a", BITS, (), lambda: True)


def test_refusals_of_models():
    with pytest.raises(InterpError, match="has a cycle: (both → answer → both|answer → both → answer)"):
        model(both=Variable("both", BITS, ("a", "answer"), lambda a, answer: a))
    with pytest.raises(InterpError, match="two variables 'a'"):
        model(again=Variable("a", BITS))
    with pytest.raises(InterpError, match="'both' has an unknown parent 'd'.*Allowed: answer, both, a, b, c"):
        model(both=Variable("both", BITS, ("a", "d"), lambda a, d: a))
    with pytest.raises(InterpError, match="no variable 'anser'.*Did you mean 'answer'"):
        CausalModel("m", model().variables, "anser")
    with pytest.raises(InterpError, match="the output 'a' is an input"):
        CausalModel("m", model().variables, "a")


def test_refusals_of_runs():
    with pytest.raises(InterpError, match="needs its input 'c'; got a, b"):
        model().run({"a": True, "b": True})
    with pytest.raises(InterpError, match="no variable 'd'"):
        model().run({**setting(0, 0, 0), "d": True})
    with pytest.raises(InterpError, match="no variable 'bth'.*Did you mean 'both'"):
        model().interchange(setting(0, 0, 0), {"bth": setting(1, 1, 1)})
    with pytest.raises(InterpError, match="'yes' is no value of 'a', which has False, True"):
        model().run({"a": "yes", "b": True, "c": True})
    with pytest.raises(InterpError, match="fixing 'both': 3 is no value of 'both'"):
        model().run(setting(0, 0, 0), fixed={"both": 3})
    broken = model(both=Variable("both", BITS, ("a", "b"), lambda a, b: "both" if a and b else False))
    with pytest.raises(InterpError, match="computing 'both' from a=True, b=True: 'both' is no value"):
        broken.run(setting(1, 1, 0))
    with pytest.raises(InterpError, match="No variable of causal model 'and-or' was named"):
        next(model().counterfactuals(()))
