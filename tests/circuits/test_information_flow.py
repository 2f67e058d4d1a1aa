"""Shares of a receiver's input equal loops over plain tensors, and know nothing of the task."""

from __future__ import annotations

import numpy as np
import pytest
from circuits.exact import exact, pairs, tolerance
from circuits.test_patching import NAMES, ByHand

from interp.circuits.information_flow import information_flow
from interp.circuits.score import METHODS
from interp.tasks.pairs import EncodedTask

PAIRS = pairs()


@pytest.mark.parametrize("family", NAMES)
def test_shares_by_hand(family):
    hand = ByHand(family)
    found = information_flow(exact(family), PAIRS)
    graph = found.graph
    terms = {sender: hand.term(PAIRS.clean, sender) for sender in graph.senders}
    layers, norm1, norm2, final = hand.names[:4]
    last = graph.n_layers - 1
    places = {"logits": final, f"m{last}": f"{layers}.{last}.{norm2}", "a1.h2<q>": f"{layers}.1.{norm1}"}
    for receiver, path in places.items():
        seen = []
        hand.logits(PAIRS.clean, [(hand.get(path), True, lambda m, a, k, seen=seen: seen.append(a[0]))])
        expected = np.zeros((len(PAIRS), len(graph.senders)))
        for row, length in enumerate(PAIRS.clean.lengths.tolist()):
            for position in range(length):
                y = seen[0][row, position]
                near = [
                    max(0.0, float(y.abs().sum() - (y - terms[sender][row, position]).abs().sum()))
                    if graph.edges[i, graph.receivers.index(receiver)]
                    else 0.0
                    for i, sender in enumerate(graph.senders)
                ]
                expected[row] += np.array(near) / sum(near) / length
        at = found.scores[:, graph.receivers.index(receiver)]
        inside = ~np.isnan(at)
        np.testing.assert_allclose(at[inside], expected.mean(0)[inside], rtol=0, atol=tolerance(family))
        error = found.data["error"].values[inside, graph.receivers.index(receiver)]
        np.testing.assert_allclose(error, expected.std(0, ddof=1)[inside] / 3**0.5, rtol=0, atol=tolerance(family))
        assert len({round(x, 6) for x in at[inside]}) > 2
    np.testing.assert_allclose(np.nansum(found.scores, 0), 1, atol=1e-6)


def test_it_is_blind_to_the_task():
    model = exact("llama")
    swapped = EncodedTask(PAIRS.task, PAIRS.clean, PAIRS.corrupted, PAIRS.wrong_answer, PAIRS.answer)
    one, other = information_flow(model, PAIRS), information_flow(model, swapped, metric="log_probability", budget=1)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=1e-9)
    assert one.provenance["score_unit"] == "share of the input" and "logits" in repr(one).splitlines()[1]
    assert one.plot().layout.title.text and METHODS["information-flow"] is information_flow
    by_head = one.scores[:, [one.graph.receivers.index(name) for name in ("a2.h0<q>", "a2.h3<q>", "a2.kv1<v>")]]
    np.testing.assert_array_equal(by_head[:, 0], by_head[:, 2])
