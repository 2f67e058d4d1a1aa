"""A sweep that was interrupted goes on where it stopped, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models.described import captured, described, ragged

from interp.errors import InterpError, LoadError
from interp.interventions.checkpoint import fingerprint
from interp.interventions.edits import Replace, Scale
from interp.interventions.schedule import Savings, base_bytes, bytes_per_token
from interp.interventions.sweep import ForwardSweep, PackedSweep, plan_sweep, sweep
from interp.models.site import Site
from interp.tasks.metrics import FunctionMetric, LogitDifference, LogProbability

METRICS = [
    LogitDifference(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])),
    LogProbability(torch.tensor([1, 2, 3])),
]


def planned(metric=METRICS, **changes):
    model, (_, corrupted) = described("llama"), ragged()
    variants = [
        [Replace(Site("resid_pre", layer), captured("llama"), positions=p)] for layer in range(3) for p in range(5)
    ] + [[Scale(Site("z", 1, head), 0.5)] for head in range(4)]
    budget = base_bytes(model, 7) * 3 + 20 * bytes_per_token(model, 7)
    arguments = {
        "budget": budget,
        "variants": variants,
        "edits": (),
        "exact": Savings(),
        "prompts": corrupted,
    } | changes
    variants, prompts = arguments.pop("variants"), arguments.pop("prompts")
    return plan_sweep(model, prompts, variants, metric, **arguments)


@pytest.fixture
def counted(monkeypatch):
    calls = []
    for kind in (PackedSweep, ForwardSweep):
        own = kind.part_values
        monkeypatch.setattr(kind, "part_values", lambda self, part, own=own: (calls.append(part), own(self, part))[1])
    return calls


def same(a, b):
    for kind in ("values", "base"):
        for name, x in getattr(a, kind).items():
            assert torch.equal(x, getattr(b, kind)[name])


@pytest.mark.parametrize("exact", [Savings(), "naive"])
def test_missing_and_damaged_chunks_are_recomputed_and_no_others(tmp_path, counted, exact):
    plan = planned(exact=exact)
    expected = plan.run()
    n = len(plan.parts)
    assert n > 6 and len(counted) == n
    counted.clear()
    same(plan.run(checkpoint=tmp_path / "new" / "folder"), expected)
    files = sorted((tmp_path / "new" / "folder").glob("chunk_*.bin"))
    assert len(files) == len(counted) == n
    times = {file: file.stat().st_mtime_ns for file in files}
    counted.clear()
    same(planned(exact=exact).run(checkpoint=tmp_path / "new" / "folder"), expected)
    assert not counted
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-3])  # cut off
    broken = bytearray(files[4].read_bytes())
    broken[-1] ^= 1  # one bit
    files[4].write_bytes(broken)
    files[5].write_bytes(b"")
    same(planned(exact=exact).run(checkpoint=tmp_path / "new" / "folder"), expected)
    assert [plan.parts.index(part) for part in counted] == [1, 2, 4, 5]
    after = {file: file.stat().st_mtime_ns for file in files}
    assert all((after[f] == times[f]) == (i not in (1, 2, 4, 5)) for i, f in enumerate(files))
    assert not list((tmp_path / "new" / "folder").glob("*.part"))


def test_an_interrupt_keeps_the_finished_chunks(tmp_path, counted):
    plan = planned()

    def interrupted(items, _):
        yield from items[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run(progress=interrupted, checkpoint=tmp_path / "c")
    counted.clear()
    resumed = planned().run(checkpoint=tmp_path / "c")
    assert len(counted) == len(plan.parts) - 4
    same(resumed, plan.run())


def test_chunks_of_the_first_call_are_kept(tmp_path, counted):
    """Another budget at the second call must not change the last bit, nor mix chunks."""
    plan = planned()
    expected = plan.run(checkpoint=tmp_path / "c")
    next((tmp_path / "c").glob("chunk_00002.bin")).unlink()
    counted.clear()
    other = planned(budget=2**30)
    assert len(other.parts) == 1
    same(other.run(checkpoint=tmp_path / "c"), expected)
    assert counted == [plan.parts[2]]


def test_another_sweep_is_refused(tmp_path):
    planned().run(checkpoint=tmp_path / "c")
    one = torch.tensor([1, 2, 3])
    others = [
        planned(variants=[[Scale(Site("z", 1), 0.5)]]),
        planned(exact=Savings(skip_noops=False)),
        planned(exact="naive"),
        planned(edits=[Scale(Site("embed"), 0.9, positions=1)]),
        planned(prompts=ragged()[0]),
        planned(metric=LogProbability(one)),
        planned(metric=[METRICS[0], LogProbability(one + 1)]),
    ]
    for other in others:
        with pytest.raises(InterpError, match="checkpoint of another sweep"):
            other.run(checkpoint=tmp_path / "c")
    planned().run(checkpoint=tmp_path / "c")


def test_values_of_edits_and_functions_are_part_of_the_mark():
    def mark(**changes):
        return fingerprint(planned(**changes).hashed())

    factor = lambda f: [[Scale(Site("z", 1), f)]]  # noqa: E731
    assert mark() == mark()
    assert mark(variants=factor(0.5)) != mark(variants=factor(0.25))
    one, two = (FunctionMetric(f) for f in (lambda x, e: x[:, 1], lambda x, e: x[:, 2]))
    assert mark(metric=one) == mark(metric=one)
    assert mark(metric=one) != mark(metric=two), "another constant in the function is another metric"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"mark": 3}', '{"mark": "x", "parts": 3}', '{"mark": "x", "parts": [[1]]}', "\x00"]
)
def test_a_damaged_header_is_refused(tmp_path, content):
    planned().run(checkpoint=tmp_path / "c")
    (tmp_path / "c" / "sweep.json").write_text(content)
    with pytest.raises(LoadError, match="sweep.json is damaged"):
        planned().run(checkpoint=tmp_path / "c")


_SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import torch
from interventions_planned import planned
def slow(items, _):
    for number, item in enumerate(items):
        if number == 5:
            print("five", flush=True)
            time.sleep(600)
        yield item
planned().run(progress=slow, checkpoint={folder!r})
"""


def test_a_killed_process_loses_no_finished_chunk(tmp_path, counted):
    tests = Path(__file__).parents[1]
    (tmp_path / "interventions_planned.py").write_text(Path(__file__).read_text())
    script = _SCRIPT.format(paths=[str(tmp_path), str(tests), str(tests.parent)], folder=str(tmp_path / "c"))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "five\n"
        time.sleep(0.1)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert len(list((tmp_path / "c").glob("chunk_*.bin"))) == 5
    (tmp_path / "c" / "chunk_00005.12345.part").write_bytes(b"half a file of a killed process")
    plan = planned()
    resumed = plan.run(checkpoint=tmp_path / "c")
    assert len(counted) == len(plan.parts) - 5
    same(resumed, sweep_again())


def sweep_again():
    plan = planned()
    return plan.run()


def test_sweep_takes_the_folder_as_well(tmp_path):
    model, (_, corrupted) = described("llama"), ragged()
    variants = [[Scale(Site("z", 1), 0.5)]]
    first = sweep(model, corrupted, variants, METRICS, checkpoint=tmp_path / "c")
    same(sweep(model, corrupted, variants, METRICS, checkpoint=str(tmp_path / "c")), first)


def test_one_number_has_a_fingerprint_whatever_its_stride():
    strided = torch.arange(6).view(3, 2)[:1, 0]
    assert strided.stride() == (2,) and fingerprint([strided]) == fingerprint([torch.tensor([0])])
