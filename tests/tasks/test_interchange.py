"""Interchange tasks: the examples, their tokens, their files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from interp.errors import InterpError, LoadError, PairError
from interp.tasks.causal_model import CausalModel, Variable
from interp.tasks.interchange import Counterfactual, Instance, InterchangeTask, compose, draw_task


def instance(text="The old key", answer=" is", number="one", **regions):
    places = tuple((name, text.index(words), text.index(words) + len(words)) for name, words in regions.items())
    return Instance(text, answer, places, {"number": number})


def example(base="The old key", source="The keys", label=" are"):
    return Counterfactual(
        instance(base, subject=base.split()[-1]), (instance(source, " are", "many", subject=source.split()[-1]),), label
    )


def task(*examples, variables=("number",)):
    return InterchangeTask(
        "numbers", variables, examples or (example(), example("The keys", "The key", " is")), "hand", 7
    )


def words_model():
    answers = {"one": " is", "many": " are"}
    inputs = Variable("noun", ("key", "keys"))
    number = Variable("number", ("one", "many"), ("noun",), lambda noun: "many" if noun[-1] == "s" else "one")
    answer = Variable("answer", (" is", " are"), ("number",), answers.__getitem__)
    return CausalModel("number", (inputs, number, answer), "answer", "by hand")


def test_compose_says_where_the_fields_stand():
    text, regions = compose("The {a} saw the {b} and {a}", ("a", "b"), {"a": "man", "b": "dogs"})
    assert text == "The man saw the dogs and man"
    assert regions == (("a", 4, 7), ("b", 16, 20))
    assert compose("No {x}{y}", ("y",), {"x": 12, "y": 3}) == ("No 123", (("y", 5, 6),))
    assert Instance(text, " x", regions, {}).words("b") == "dogs"


def test_a_position_is_the_last_token_of_its_region_in_each_text(model):
    encoded = task().encode(model)
    assert encoded.regions == ("subject", "last") and len(encoded) == 2
    base, (source,) = encoded.position("subject")
    for prompts, places, words in (
        (encoded.base, base, (" key", " keys")),
        (encoded.sources[0], source, (" keys", " key")),
    ):
        assert tuple(prompts.tokens[row][place] for row, place in enumerate(places)) == words
    assert base.tolist() == [2, 1] and source.tolist() == [1, 1]
    last, (last_source,) = encoded.position("last")
    assert last.tolist() == [2, 1] and last_source.tolist() == [1, 1]
    assert not encoded.aligned and encoded.select([1, 1]).aligned


def test_a_region_of_several_tokens_ends_with_its_last(model):
    text = "The xylophonist cats"
    one = Instance(text, " are", (("subject", 4, len(text)), ("kind", 4, 15)), {})
    encoded = task(Counterfactual(one, (replace(one, answer=" were"),), " were")).encode(model)
    assert encoded.base.tokens[0][encoded.position("subject")[0][0]] == " cats"
    before = encoded.base.tokens[0][: int(encoded.position("kind")[0][0]) + 1]
    assert "".join(before) == "The xylophonist" and len(before) > 2


def test_the_ids_are_those_of_the_answers(model):
    encoded = task().encode(model)

    def spoken(ids):
        return [model.tokenizer.decode([int(i)]) for i in ids]

    assert spoken(encoded.answer) == [" is", " is"] and spoken(encoded.label) == [" are", " is"]
    assert [spoken(row) for row in encoded.source_answers] == [[" are", " are"]]
    assert sorted(spoken(encoded.answers)) == [" are", " is"]


def test_slices_and_selections_agree(model):
    whole = task()
    assert whole[:1].examples == whole.examples[:1] == whole.select([0]).examples
    encoded, chosen = whole.encode(model), whole.encode(model).select([1, 0, 1])
    assert chosen.label.tolist() == encoded.label[[1, 0, 1]].tolist()
    assert chosen.position("subject")[0].tolist() == [1, 2, 1] and len(chosen) == 3
    assert [e.base.text for e in chosen.task] == ["The keys", "The old key", "The keys"]
    with pytest.raises(TypeError, match="sliced"):
        whole[0]


def test_repr_tells_the_first_example(model):
    assert repr(task()) == (
        "InterchangeTask('numbers', 2 examples, seed=7; 'The old key' →' is', with number of 'The keys' →' are')"
    )
    assert (
        repr(task().encode(model))
        == "EncodedInterchange('numbers', 2 examples of 2 to 3 tokens, regions subject, last)"
    )


def test_files_give_the_task_back(tmp_path):
    one = example()
    odd = replace(one, base=replace(one.base, setting={"pair": (1, (2, 3)), "yes": True}))
    path = tmp_path / "task.jsonl"
    task(one, odd).to_jsonl(path)
    assert InterchangeTask.from_jsonl(path) == task(one, odd)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no examples"),
        (["{"], "Line 1 of .* is not JSON"),
        (
            ['{"task": "t"}'],
            r"Line 1 of .* must be an object of \['task', 'variables', 'source', 'seed'\]; got \['task'\]",
        ),
        (["HEAD"], "holds no examples"),
        (["HEAD", "[]"], "Line 2 of .* must be an object of .*; got list"),
        (["HEAD", '{"base": {}, "sources": [], "label": 3}'], "Line 2 of .*: label must be of type .*; got 3"),
        (
            ["HEAD", "EXAMPLE", '{"base": {"text": "a"}, "sources": [], "label": ""}'],
            "Line 3 of .* must be an object of",
        ),
        (["HEAD", "REGION"], r"a region is \[name, first character, end\]; got \['subject', 8\]"),
        (["HEAD", "OUTSIDE"], "Line 2 of .*: Region 'subject' is characters 8 to 99"),
        (["HEAD", "SOURCELESS"], "has 0 sources for the variables number"),
    ],
)
def test_files_that_are_refused(tmp_path, lines, message):
    path = tmp_path / "task.jsonl"
    task(example()).to_jsonl(path)
    head, line = path.read_text().splitlines()
    row = json.loads(line)
    made = {
        "HEAD": head,
        "EXAMPLE": line,
        "REGION": json.dumps({**row, "base": {**row["base"], "regions": [["subject", 8]]}}),
        "OUTSIDE": json.dumps({**row, "base": {**row["base"], "regions": [["subject", 8, 99]]}}),
        "SOURCELESS": json.dumps({**row, "sources": []}),
    }
    path.write_text("\n".join(made.get(line, line) for line in lines))
    with pytest.raises(LoadError, match=message):
        InterchangeTask.from_jsonl(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LoadError, match="no file"):
        InterchangeTask.from_jsonl(tmp_path / "nothing.jsonl")


def drawn(n, seed=0, write=None):
    def draw(random, _base):
        return {"noun": random.choice(("key", "keys"))}

    def spoken(values, random):
        text, regions = compose("{where} the {noun}", ("noun",), {"where": random.choice(("By", "Near")), **values})
        return Instance(text, str(values["answer"]), regions, values)

    causal = words_model()
    tensed = Variable("late", (False, True))
    answer = Variable("answer", (" is", " are", " was", " were"), ("number", "late"),
                      lambda n, late: {"one": (" is", " was"), "many": (" are", " were")}[n][late])  # fmt: skip
    causal = CausalModel("number", (*causal.variables[:2], tensed, answer), "answer", "by hand")

    def draw_both(random, base):
        return {**draw(random, base), "late": random.random() < 0.5}

    return causal, draw_task("drawn", causal, ("number",), n, seed, draw=draw_both, write=write or spoken)


def test_a_drawn_task_keeps_the_law_and_its_model_agrees():
    causal, made = drawn(60)
    made.check(causal)
    assert drawn(20)[1].examples == made.examples[:20] != drawn(20, seed=1)[1].examples
    assert sum(e.label == e.base.answer for e in made) == 30
    assert sum(e.label == e.sources[0].answer for e in made) <= 30
    assert all(e.base.text.split()[0] == e.sources[0].text.split()[0] for e in made)  # one random state per example
    assert {e.base.text.split()[0] for e in made} == {"By", "Near"}


def test_check_shows_what_a_causal_model_disagrees_with():
    causal, made = drawn(4)
    wrong = replace(made.examples[1], base=replace(made.examples[1].base, answer=" flies"))
    with pytest.raises(InterpError, match="'number' disagrees with example 2: the right answer is ' flies'"):
        replace(made, examples=(made.examples[0], wrong)).check(causal)
    mislabelled = replace(made.examples[2], label=" flies")
    with pytest.raises(PairError, match="disagrees with example 1 of task 'drawn'.*the label is ' flies'"):
        replace(made, examples=(made.examples[0], mislabelled)).check(causal)


def test_refusals_of_data():
    with pytest.raises(PairError, match="empty text"):
        instance("")
    for start, end in ((3, 3), (-1, 2), (0, 12)):
        with pytest.raises(
            PairError, match=f"Region 'r' is characters {start} to {end} of 'The old key', which has 11"
        ):
            Instance("The old key", " is", (("r", start, end),), {})
    with pytest.raises(PairError, match="Region 'last' is named twice"):
        Instance("The old key", " is", (("last", 0, 3),), {})
    with pytest.raises(PairError, match="Region 'a' is named twice"):
        Instance("The old key", " is", (("a", 0, 3), ("a", 4, 7)), {})
    with pytest.raises(PairError, match="exchanges no variable"):
        task(variables=())
    with pytest.raises(PairError, match="Example 0 of task 'numbers' has 1 sources for the variables number, tense"):
        task(variables=("number", "tense"))
    with pytest.raises(PairError, match="at least 1"):
        drawn(0)


def test_refusals_of_encoding(model):
    with pytest.raises(PairError, match="has no examples"):
        replace(task(), examples=()).encode(model)
    with pytest.raises(PairError, match="example 0: label ' xylophonists' must continue .* by exactly one token"):
        task(example(label=" xylophonists")).encode(model)
    long = replace(example().base, answer=" xylophonists")
    with pytest.raises(PairError, match="base of example 0: answer .* must continue"):
        task(replace(example(), base=long)).encode(model)
    bare = replace(example(), sources=(instance("The keys", " are"),))
    with pytest.raises(
        PairError, match="source of number of example 0 has the regions none; the first base has subject"
    ):
        task(bare).encode(model)
    inside = Instance("The old key", " is", (("subject", 8, 10),), {})
    with pytest.raises(
        PairError, match="region 'subject', 'ke', does not end where a token ends; the tokens are .*' key'"
    ):
        task(replace(example(), base=inside)).encode(model)
    slow = SimpleNamespace(tokenizer=SlowTokenizer(model.tokenizer), device="cpu")
    with pytest.raises(PairError, match="SlowTokenizer does not tell where its tokens stand"):
        task().encode(slow)
    with pytest.raises(PairError, match="no region 'subjet'.*Did you mean 'subject'.*Allowed: subject, last"):
        task().encode(model).position("subjet")


class SlowTokenizer:
    """Tokens without their places."""

    is_fast = False

    def __init__(self, inner):
        self.decode, self.inner = inner.decode, inner

    def __call__(self, text, **options):
        return self.inner(text, **options)


def test_without_regions_lengths_must_agree_and_the_tokens_are_shown(model):
    def bare(base, source):
        return Counterfactual(instance(base), (instance(source, " are"),), " are")

    with pytest.raises(PairError, match=r"base has 3 tokens and the source of number has 2(.|\n)*' old' +≠"):
        task(bare("The old key", "The keys")).encode(model)
    encoded = task(bare("The key", "The keys")).encode(model)
    assert encoded.regions == ("last",) and encoded.aligned


def test_a_data_set_in_which_the_variable_never_changes_the_answer_is_refused(model):
    kept = example(label=" is")
    with pytest.raises(PairError, match="In none of the 2 examples .* does exchanging number change the base's answer"):
        task(kept, kept).encode(model)
    task(kept, example()).encode(model)
