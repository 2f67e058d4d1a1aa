"""Causal tracing of facts, and attention knockout."""

from interp.tracing.causal import TraceResult, trace
from interp.tracing.knockout import KnockoutResult, knockout

__all__ = ["KnockoutResult", "TraceResult", "knockout", "trace"]
