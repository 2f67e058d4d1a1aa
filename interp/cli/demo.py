"""`interp models` and `interp demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from interp.cli.shared import Plotted, console, errors_told, sections_of

if TYPE_CHECKING:
    from interp.results import Result

DEMO_PROMPT = "a large red circle at top left on a white background"


def models() -> None:
    """Models that need no hub, and the families that are supported."""
    from interp.models.families import FAMILIES, REFUSED
    from interp.models.load import EMBEDDED
    from interp.models.pipelines import FAMILIES as PIPELINES

    table = Table("what", "names", title="interp.load")
    table.add_row("embedded", ", ".join(EMBEDDED))
    table.add_row("families, with every saving", ", ".join(FAMILIES))
    table.add_row("diffusion pipelines", ", ".join(PIPELINES))
    table.add_row("others", "by TransformerLens's adapters (interp\\[lens]); whole forward passes")
    table.add_row("refused", "\n".join(f"{kind}: {why}" for kind, why in REFUSED.items()))
    console.print(table)


def demo(out: Annotated[Path, typer.Option(help="Folder for the page and the pictures.")] = Path("out")) -> None:
    """Trace a fact and patch IOI on SmolLM2-135M, trace a picture of the shapes model; writes demo.html and PNGs."""
    import interp
    from interp.plots import write_png, write_report
    from interp.progress import bar

    with errors_told():
        out.mkdir(parents=True, exist_ok=True)
        console.print("Loading SmolLM2-135M (the first time, its GGUF is converted once) …")
        model = interp.load("smollm2-135m")
        prompt, subject = "The Eiffel Tower is located in the city of", "The Eiffel Tower"
        fact = interp.trace(model, prompt, subject=subject, answer=" Paris", progress=bar)
        cut = interp.knockout(model, prompt, subject=subject, answer=" Paris", progress=bar)
        # Positions of different sentences do not correspond, so the stream is patched on one pair; a head
        # at the last token means the same in every sentence, so many pairs tell what is reliable.
        pair = interp.tasks.PromptPair(
            "When Mary and John went to the store, John gave a drink to",
            "When Mary and John went to the store, Mary gave a drink to",
            " Mary",
            " John",
        )
        stream = interp.patch(model, pair, "resid_pre", progress=bar)
        heads = interp.patch(model, interp.tasks.ioi(n=24, seed=0), "z", positions=-1, progress=bar)
        painter = interp.load("shapes")
        red = interp.trace_image(painter, DEMO_PROMPT, attribute="red", seeds=3, progress=bar)
        results: dict[str, Plotted] = {
            "trace": fact, "knockout": cut, "ioi_resid": stream, "ioi_heads": heads, "red": red
        }  # fmt: skip
        sections = []
        for name, result in results.items():
            console.print(result.summary(), markup=False, highlight=False)
            console.print()
            result.save(out / f"{name}.nc")
            for number, section in enumerate(sections_of(result)):
                write_png(section[-1], out / f"{name}{'_pictures' if number else ''}.png")
                sections.append(section)
        _print_top_heads(heads)
        write_report(out / "demo.html", "interp: a fact and a circuit of SmolLM2-135M, a colour of a picture", sections)
        console.print(f"wrote {out / 'demo.html'} and {len(sections)} pictures", markup=False)


def _print_top_heads(result: Result) -> None:
    table = Table(
        "head",
        "effect (logits)",
        "95 % interval",
        "adjusted p",
        title="IOI: heads at the last token with the largest effect",
    )
    data = result.data
    effect = data["logit_difference_effect"].stack(cell=("layer", "head"))
    for cell in effect[abs(effect).argsort().values[::-1][:8]]["cell"].values:
        layer, head = (int(i) for i in cell)
        at = {"layer": layer, "head": head}
        low, high, p = (float(data[f"logit_difference_{name}"].sel(at)) for name in ("low", "high", "p"))
        value = float(data["logit_difference_effect"].sel(at))
        table.add_row(f"L{layer}H{head}", f"{value:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.2g}")
    console.print(table)
