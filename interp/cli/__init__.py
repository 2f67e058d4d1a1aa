"""The command line: the experiments, with their results as tables, pages and pictures."""

from __future__ import annotations

import typer

from interp.cli.alignment import abstraction, align
from interp.cli.circuits import circuit
from interp.cli.concepts import fit, graph, show
from interp.cli.demo import demo, models
from interp.cli.latents import steer_latent
from interp.cli.steering import steer
from interp.cli.tracing import patch, trace

app = typer.Typer(
    help="Causal, mechanistic interpretability: trace facts, patch activations, find circuits, steer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (trace, patch, circuit, align, abstraction, steer):
    app.command()(command)
concepts = typer.Typer(help="Dictionaries of a site: train one, look at its concepts.", no_args_is_help=True)
app.add_typer(concepts, name="concepts")
for command in (fit, show, graph):
    concepts.command()(command)
concepts.command("steer")(steer_latent)
for command in (models, demo):
    app.command()(command)
