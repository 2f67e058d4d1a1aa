"""EAP-IG and exact edges by the reference implementation (hannamw/EAP-IG), in a process of its own; `circuits.py` calls it.

It lives in another environment with a TransformerLens that still has `HookedTransformer` (see README.md). Its device
is written into it as "cuda", and it tokenizes by itself; both are replaced from outside, nothing else is. Prints one
line of JSON, and writes its scores into a file.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import numpy as np
import report  # noqa: F401  it puts the project on the path
import typer
from resident import peak, reset_peak, resident, trim
from timing import processor_seconds, set_threads, spread


def main(pairs: int = 16, steps: int = 5, edges: int = 20, threads: int = 2, scores: str = "scores.npy") -> None:
    """Time EAP-IG on inputs over `pairs` IOI pairs, and one exact effect for each of `edges` edges on the first pair."""
    sys.path.insert(0, os.environ.get("EAP_IG_SOURCE", ""))
    try:
        import transformer_lens
        from eap import attribute, evaluate
        from eap.graph import Graph
    except ImportError as error:
        print(f"{error}; benchmarks/README.md says how to make an environment for it.")
        return
    import torch

    import interp

    warnings.filterwarnings("ignore")  # of the peer's own making; only its table is read
    set_threads(threads)
    model = interp.load("smollm2-135m")
    encoded = interp.tasks.ioi(pairs).encode(model)
    hooked = hooked_transformer(transformer_lens, model)
    attribute.torch = on_cpu(torch)
    prompts = {"clean": encoded.clean, "corrupted": encoded.corrupted}
    for module in (attribute, evaluate):
        module.tokenize_plus = lambda _, text: tokens(prompts[text[0].split()[0]], [int(x.split()[1]) for x in text])
    graph = Graph.from_model(hooked)

    def rows(n: int) -> list[Any]:
        answers = torch.stack([encoded.answer, encoded.wrong_answer], 1)[:n]
        return [([f"clean {i}" for i in range(n)], [f"corrupted {i}" for i in range(n)], answers)]

    def metric(logits: Any, _: Any, lengths: Any, answers: Any) -> Any:
        last = logits[torch.arange(len(logits)), lengths - 1].gather(1, answers)
        return (last[:, 0] - last[:, 1]).sum()

    def eap_ig(n: int, steps: int) -> None:
        attribute.attribute(hooked, graph, rows(n), metric, "EAP-IG-inputs", ig_steps=steps, quiet=True)

    eap_ig(2, 1)  # warm up
    hooked.zero_grad(set_to_none=True)
    trim()
    reset_peak()
    before = resident()
    _, took, cpu = processor_seconds(lambda: eap_ig(pairs, steps))
    above = peak() - before
    np.save(scores, graph.scores.numpy())

    graph.in_graph |= graph.real_edge_mask

    def exact(edge: Any) -> None:
        edge.in_graph = False
        evaluate.evaluate_graph(hooked, graph, rows(1), metric, quiet=True, skip_clean=True)
        graph.in_graph |= graph.real_edge_mask

    sample = spread(list(graph.edges.values()), edges + 1)
    exact(sample[0])  # warm up
    _, _, took_exact = processor_seconds(lambda: [exact(edge) for edge in sample[1:]])
    print(json.dumps({
        "edges": len(graph.edges), "seconds": took, "processor": cpu, "above": above, "per_edge": took_exact / edges,
        "senders": [name for name in graph.nodes if name != "logits"], "receivers": graph.get_dst_nodes(),
    }))  # fmt: skip


def tokens(prompts: Any, rows: list[int]) -> tuple[Any, Any, Any, int]:
    """What the reference's own tokenizing returns: ids, mask, lengths, width."""
    chosen = prompts.select(rows)
    return chosen.ids, chosen.mask.long(), chosen.lengths, chosen.ids.shape[1]


def on_cpu(torch: Any) -> Any:
    """torch, but for `zeros`, which forgets the device."""

    class OnCpu:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def zeros(self, *size: Any, device: Any = None, **how: Any) -> Any:
            return torch.zeros(*size, **how)

    return OnCpu()


def hooked_transformer(transformer_lens: Any, model: Any) -> Any:
    """SmolLM2 as a HookedTransformer with the settings that the reference asks for."""
    import torch

    network = model.network
    config, weights = network.config, network.state_dict()
    heads, kv_heads, d_head = config.num_attention_heads, config.num_key_value_heads, model.d_head
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    hooked = transformer_lens.HookedTransformer(
        transformer_lens.HookedTransformerConfig(
            d_model=config.hidden_size, d_head=d_head, n_heads=heads, n_key_value_heads=kv_heads,
            n_layers=config.num_hidden_layers, n_ctx=512, eps=config.rms_norm_eps, d_vocab=config.vocab_size,
            act_fn="silu", gated_mlp=True, d_mlp=config.intermediate_size, normalization_type="RMS", final_rms=True,
            positional_embedding_type="rotary", rotary_dim=d_head, rotary_base=int(theta), rotary_adjacent_pairs=False,
            device="cpu", default_prepend_bos=False, use_attn_result=True, use_split_qkv_input=True,
            use_hook_mlp_in=True, ungroup_grouped_query_attention=True,
        ), tokenizer=model.tokenizer,
    )  # fmt: skip
    state = {
        "embed.W_E": weights["model.embed_tokens.weight"], "ln_final.w": weights["model.norm.weight"],
        "unembed.W_U": network.lm_head.weight.T, "unembed.b_U": torch.zeros(config.vocab_size),
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        theirs, own = f"model.layers.{layer}.", f"blocks.{layer}."
        state |= {
            own + "ln1.w": weights[theirs + "input_layernorm.weight"],
            own + "ln2.w": weights[theirs + "post_attention_layernorm.weight"],
            own + "attn.W_O": weights[theirs + "self_attn.o_proj.weight"].T.unflatten(0, (heads, d_head)),
            own + "attn.b_O": torch.zeros(config.hidden_size), own + "mlp.b_out": torch.zeros(config.hidden_size),
            own + "mlp.b_in": torch.zeros(config.intermediate_size),
        }  # fmt: skip
        for name, part, n in (("Q", "q", heads), ("K", "k", kv_heads), ("V", "v", kv_heads)):
            mark = "" if name == "Q" else "_"
            weight = weights[f"{theirs}self_attn.{part}_proj.weight"].unflatten(0, (n, d_head)).transpose(1, 2)
            state |= {f"{own}attn.{mark}W_{name}": weight, f"{own}attn.{mark}b_{name}": torch.zeros(n, d_head)}
        for name, part in (("in", "up"), ("gate", "gate"), ("out", "down")):
            state[f"{own}mlp.W_{name}"] = weights[f"{theirs}mlp.{part}_proj.weight"].T
    missing, unexpected = hooked.load_state_dict(state, strict=False)
    lost = [name for name in missing if not name.endswith(("mask", "IGNORE", "rotary_sin", "rotary_cos"))]
    assert not lost and not unexpected, (lost, unexpected)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(hooked(ids), network(ids).logits, atol=1e-3)
    return hooked


if __name__ == "__main__":
    typer.run(main)
