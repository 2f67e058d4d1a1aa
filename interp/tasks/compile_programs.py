"""The weights and circuits that `interp.tasks.compiled` reads, written by DeepMind's compiler for RASP.

    python interp/tasks/compile_programs.py

in an environment with `tracr-pypi` and `safetensors` (it needs JAX, and neither torch nor interp). Nothing else in
interp needs it again: what it writes is committed, to `data/compiled`.

A program here is causal: a position sees itself and what lies before it. The compiler gives each value of each
variable of a program a direction of the residual stream of its own, and each component the weights that read some and
write others. From that the circuit is read off:

- an edge *carries* the variables that its sender writes and its receiver reads;
- the circuit under **resample** ablation is every edge that carries a variable that depends on the prompt's words, on a
  path of such edges from the input to the logits. Positions and constants are alike in the two prompts of a pair;
- the circuit under **zero** ablation is the same of edges that carry anything, less the *idle* ones. Those carry what
  no prompt of the program's domain needs: a constant that sends a head to the first token when nothing matches, or
  what only shrinks a number of which the sign is asked. Which they are is no theory: they were found by leaving each
  edge out on every prompt, and the tests do it again.

Source: Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for Interpretability" (arXiv:2301.05062); the
language, Weiss et al. 2021, "Thinking Like Transformers" (arXiv:2106.06981).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from tracr.compiler import compiling  # pyright: ignore[reportMissingImports]
from tracr.rasp import rasp  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).parent / "data" / "compiled"
BOS = "bos"
LOGITS = 10.0
"""Logit of the right answer of a program with categorical output; every other token has 0."""
NUMERIC_LOGITS = 100.0
"""A number x gives the answer v the logit 100 (1 + 2xv − v²): linear in x, and largest for the v nearest to x."""
EQ = rasp.Comparison.EQ


@dataclass(frozen=True)
class Source:
    """A program to compile.

    Attributes:
        build: makes its expression.
        words: tokens of its prompts.
        numbers: values of a numerical output, of which each is a token.
        longest: words of its longest prompt; at least six, for the proofs of `interp.load` run on seven tokens.
        idle: edges that carry something and are not needed.
    """

    build: Callable[[], Any]
    words: str
    numbers: tuple[Fraction, ...] = ()
    longest: int = 6
    idle: str = ""


def _shifted(back: int, name: str) -> Any:
    place = rasp.Map(lambda i: i - back, rasp.indices).named(f"{name}_place")
    return rasp.Aggregate(rasp.Select(rasp.indices, place, EQ), rasp.tokens).named(name)


def _first() -> Any:
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == 0), rasp.tokens).named("first")


def _reverse() -> Any:
    place = rasp.Map(lambda i: 7 - i, rasp.indices).named("opposite_place")
    return rasp.Aggregate(rasp.Select(rasp.indices, place, EQ), rasp.tokens).named("opposite")


def _share(word: str) -> Any:
    """Share of a word among the tokens so far."""
    is_word = rasp.numerical(rasp.Map(lambda t: float(t == word), rasp.tokens)).named(f"is_{_spoken(word)}")
    so_far = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
    return rasp.numerical(rasp.Aggregate(so_far, is_word, default=0)).named(f"share_{_spoken(word)}")


def _spoken(word: str) -> str:
    return {"(": "open", ")": "closed"}.get(word, word)


def _surplus(one: str, other: str) -> Any:
    return rasp.numerical(rasp.LinearSequenceMap(_share(one), _share(other), 1, -1)).named("surplus")


def _induction(previous: Any) -> Any:
    return rasp.Aggregate(rasp.Select(previous, rasp.tokens, EQ), rasp.tokens).named("after_match")


def _two_hop() -> Any:
    previous = _shifted(1, "previous")
    return rasp.Aggregate(rasp.Select(previous, _induction(previous), EQ), rasp.tokens).named("after_second_match")


def _occurrences() -> Any:
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, EQ)).named("occurrences")


def _parity() -> Any:
    count = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.indices, lambda k, q: k == "x")).named("count")
    return rasp.Map(lambda n: "odd" if n % 2 else "even", count).named("parity")


def _trigram() -> Any:
    near = rasp.SequenceMap(lambda p, t: p == "b" and t == "c", _shifted(1, "previous"), rasp.tokens).named("bc")
    far = _shifted(2, "second_previous")
    return rasp.SequenceMap(lambda f, n: _yes(f == "a" and n), far, near).named("abc")


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _pointer() -> Any:
    here = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: q in ("0", "1", "2") and k == int(q))
    return rasp.Aggregate(here, rasp.tokens).named("pointed")


def _shares(longest: int) -> tuple[Fraction, ...]:
    return tuple(sorted({Fraction(k, n) for n in range(1, longest + 1) for k in range(n + 1)}))


def _surpluses(longest: int) -> tuple[Fraction, ...]:
    return tuple(sorted({Fraction(k - (n - k), n) for n in range(1, longest + 1) for k in range(n + 1)}))


SOURCES = {
    "reverse": Source(_reverse, "a b c =", longest=8, idle="input->a1.h0<q>"),
    "x_proportion": Source(lambda: _share("x"), "x y z", _shares(6)),
    "previous": Source(lambda: _shifted(1, "previous"), "a b c", idle="input->a1.h0<q>"),
    "first": Source(_first, "a b c"),
    "match_first": Source(
        lambda: rasp.SequenceMap(lambda f, t: _yes(f == t), _first(), rasp.tokens).named("matches"), "a b c"
    ),
    "caesar": Source(
        lambda: rasp.Map(lambda t: dict(zip("abcd", "bcda", strict=True))[t], rasp.tokens).named("next_letter"),
        "a b c d",
    ),
    "pointer": Source(_pointer, "a b c 0 1 2"),
    "addition": Source(
        lambda: rasp.SequenceMap(
            lambda p, t: str((int(p) + int(t)) % 5), _shifted(1, "previous"), rasp.tokens
        ).named("sum"),
        "0 1 2 3 4", idle="input->a1.h0<q>",
    ),
    "trigram": Source(_trigram, "a b c", idle="input->a1.h0<q> input->a1.h1<q>"),
    "induction": Source(
        lambda: _induction(_shifted(1, "previous")), "a b c d", idle="input->a1.h0<q> input->a2.h0<k>"
    ),
    "two_hop": Source(
        _two_hop, "a b c d", idle="input->a1.h0<q> input->a2.h0<k> input->a3.h0<q> input->a3.h0<k>"
    ),
    "occurrences": Source(_occurrences, "a b c"),
    "duplicate": Source(lambda: rasp.Map(lambda n: _yes(n > 1), _occurrences()).named("repeated"), "a b c"),
    "parity": Source(_parity, "x y z"),
    "balance": Source(lambda: _surplus("(", ")"), "( )", _surpluses(6)),
    "majority": Source(
        lambda: rasp.Map(lambda d: _yes(d > 0), _surplus("x", "y")).named("more"),
        "x y z", idle="input->a1.h0<q> input->a1.h0<k>",
    ),
}  # fmt: skip


def compile_program(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights in the layout of transformers' GPT-2, and what is known about them, JSON-able."""
    source = SOURCES[name]
    expression = source.build()
    model = compiling.compile_rasp_to_model(
        expression, set(source.words.split()), source.longest, causal=True, compiler_bos=BOS, compiler_pad="pad"
    )
    vocabulary = [BOS, *source.words.split()]
    outputs = _outputs(model, expression, source, vocabulary)
    vocabulary += [token for token in outputs if token not in vocabulary]
    weights, config = _gpt2(model, vocabulary, outputs)
    variables = _variables(expression)
    carried = _carried(weights, config, _named(model.residual_labels, variables))
    depends = {variable for variable, dependent in variables.values() if dependent}
    circuits = {
        "zero": _on_path(carried) - set(source.idle.split()),
        "resample": _on_path([edge for edge, what in carried.items() if depends & set(what)]),
    }
    known = {
        "name": name,
        "config": config,
        "vocabulary": vocabulary,
        "circuits": {ablation: sorted(edges) for ablation, edges in circuits.items()},
        "carried": {edge: sorted(carried[edge]) for edge in sorted(_on_path(carried))},
    }
    return weights, known


def _outputs(model: Any, expression: Any, source: Source, vocabulary: list[str]) -> dict[str, dict[str, float]]:
    """Per output token, the residual directions that its logit reads and how much of each."""
    label = expression.label
    if source.numbers:
        return {
            str(v): {label: 2 * NUMERIC_LOGITS * float(v), "one": NUMERIC_LOGITS * (1 - float(v) ** 2)}
            for v in source.numbers
        }
    own = [direction for direction in model.residual_labels if direction.startswith(f"{label}:")]
    tokens = {direction: direction.removeprefix(f"{label}:") for direction in own}
    return {token: {direction: LOGITS} for direction, token in tokens.items() if token not in (BOS, "pad")}


def _gpt2(model: Any, vocabulary: list[str], outputs: dict[str, dict[str, float]]) -> tuple[dict, dict]:
    config, labels = model.model_config, model.residual_labels
    heads, key = config.num_heads, config.key_size
    d_head = max(key, -(-len(labels) // heads))
    width = heads * d_head
    params = {f"{module}/{kind}": np.asarray(p) for module, own in model.params.items() for kind, p in own.items()}

    def wide(x: np.ndarray) -> np.ndarray:
        """The last axis padded from the compiler's residual stream to ours."""
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

    def per_head(x: np.ndarray) -> np.ndarray:
        """[..., head · key] to [..., head · d_head]."""
        split = x.reshape(*x.shape[:-1], heads, key)
        return np.pad(split, [(0, 0)] * (split.ndim - 1) + [(0, d_head - key)]).reshape(*x.shape[:-1], width)

    encoding = model.input_encoder.encoding_map
    tokens = wide(params["token_embed/embeddings"])
    weights = {
        "transformer.wte.weight": np.stack(
            [tokens[encoding[t]] if t in encoding else np.zeros(width, np.float32) for t in vocabulary]
        ),
        "transformer.wpe.weight": wide(params["pos_embed/embeddings"]),
    }
    for layer in range(config.num_layers):
        source, target = f"transformer/layer_{layer}", f"transformer.h.{layer}"
        # Scores are divided by the root of the head's width, which is another here.
        rescale = {"query": np.sqrt(d_head / key), "key": 1, "value": 1}
        projections = [
            (wide(per_head(params[f"{source}/attn/{part}/w"]).T).T * scale, per_head(params[f"{source}/attn/{part}/b"]))
            for part, scale in rescale.items()
        ]
        weights[f"{target}.attn.c_attn.weight"] = np.concatenate([w for w, _ in projections], 1)
        weights[f"{target}.attn.c_attn.bias"] = np.concatenate([b for _, b in projections])
        weights[f"{target}.attn.c_proj.weight"] = wide(per_head(params[f"{source}/attn/linear/w"].T).T)
        weights[f"{target}.attn.c_proj.bias"] = wide(params[f"{source}/attn/linear/b"])
        weights[f"{target}.mlp.c_fc.weight"] = wide(params[f"{source}/mlp/linear_1/w"].T).T
        weights[f"{target}.mlp.c_fc.bias"] = params[f"{source}/mlp/linear_1/b"]
        weights[f"{target}.mlp.c_proj.weight"] = wide(params[f"{source}/mlp/linear_2/w"])
        weights[f"{target}.mlp.c_proj.bias"] = wide(params[f"{source}/mlp/linear_2/b"])
    unembed = np.zeros((len(vocabulary), width), np.float32)
    for token, reads in outputs.items():
        for direction, weight in reads.items():
            unembed[vocabulary.index(token), labels.index(direction)] = weight
    weights["lm_head.weight"] = unembed
    shape = {
        "n_layer": config.num_layers, "n_head": heads, "n_embd": width, "n_inner": config.mlp_hidden_size,
        "n_positions": len(params["pos_embed/embeddings"]), "vocab_size": len(vocabulary),
    }  # fmt: skip
    return {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}, shape


def _variables(expression: Any) -> dict[str, tuple[str, bool]]:
    """Name of each variable by the compiler's label, and whether it depends on the prompt's words."""
    found: dict[str, tuple[str, bool]] = {}

    def visit(node: Any) -> bool:
        below = [visit(child) for child in node.children]  # a list: every child is to be visited
        dependent = node is rasp.tokens or any(below)
        found[node.label] = (node.name, dependent)
        return dependent

    visit(expression)
    return found


def _named(labels: list[str], variables: dict[str, tuple[str, bool]]) -> list[str]:
    """The variable that each residual direction belongs to; what never varies is its own ("one", "tokens:bos")."""

    def name(label: str) -> str:
        if label in ("one", f"tokens:{BOS}", "tokens:pad"):
            return label
        owners = [own for own in variables if label.startswith(own)]
        return variables[max(owners, key=len)][0] if owners else label.split(":")[0]

    return [name(label) for label in labels]


def _carried(weights: dict[str, np.ndarray], config: dict[str, int], variables: list[str]) -> dict[str, list[str]]:
    """Per edge, the variables that the sender writes and the receiver reads; edges with none are left out."""
    heads, width, d_head = config["n_head"], config["n_embd"], config["n_embd"] // config["n_head"]
    embedded = np.abs(weights["transformer.wte.weight"]).sum(0) + np.abs(weights["transformer.wpe.weight"]).sum(0)
    senders = {"input": embedded > 0}
    carried: dict[str, list[str]] = {}

    def receive(receiver: str, reads: np.ndarray) -> None:
        for sender, writes in senders.items():
            if common := sorted({variables[d] for d in np.flatnonzero(reads & writes)}):
                carried[f"{sender}->{receiver}"] = common

    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        into, out = weights[f"{block}.attn.c_attn.weight"], weights[f"{block}.attn.c_proj.weight"]
        written = {}
        for head in range(heads):
            columns = np.arange(head * d_head, (head + 1) * d_head)
            written[f"a{layer}.h{head}"] = (out[columns] != 0).any(0)
            for place, part in enumerate("qkv"):
                receive(f"a{layer}.h{head}<{part}>", (into[:, columns + place * width] != 0).any(1))
        senders |= written
        receive(f"m{layer}", (weights[f"{block}.mlp.c_fc.weight"] != 0).any(1))
        senders[f"m{layer}"] = (weights[f"{block}.mlp.c_proj.weight"] != 0).any(0)
    receive("logits", (weights["lm_head.weight"] != 0).any(0))
    return carried


def _on_path(edges: Any) -> set[str]:
    """The edges that lie on a path from the input to the logits."""
    pairs = {edge: (edge.split("->")[0], edge.split("->")[1].split("<")[0]) for edge in edges}

    def closure(start: str, forward: bool) -> set[str]:
        reached, grown = {start}, True
        while grown:
            more = {ends[forward] for ends in pairs.values() if ends[not forward] in reached}
            grown = bool(more - reached)
            reached |= more
        return reached

    after, before = closure("input", True), closure("logits", False)
    return {edge for edge, (sender, receiver) in pairs.items() if sender in after and receiver in before}


def write(name: str, folder: Path) -> None:
    """Write weights (of each its shape, and places and values of what is not zero), circuits, and digests."""
    weights, known = compile_program(name)
    sparse: dict[str, np.ndarray] = {}
    for weight, dense in weights.items():
        places = np.flatnonzero(dense)
        sparse[f"{weight}/place"], sparse[f"{weight}/value"] = places.astype(np.int32), dense.ravel()[places]
        sparse[f"{weight}/shape"] = np.array(dense.shape, np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{name}.safetensors": save(sparse),
        f"{name}.json": (json.dumps(known, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    digests = folder / "sha256.json"
    recorded = json.loads(digests.read_text("utf-8")) if digests.exists() else {}
    for file, content in files.items():
        (folder / file).write_bytes(content)
        recorded[file] = hashlib.sha256(content).hexdigest()
    digests.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    for program in SOURCES:
        write(program, FOLDER)
