"""Causal tracing of facts and of pictures, and attention knockout."""

from interp.tracing.causal import TraceResult, trace
from interp.tracing.image import ImageTraceResult, trace_image
from interp.tracing.knockout import KnockoutResult, knockout

__all__ = ["ImageTraceResult", "KnockoutResult", "TraceResult", "knockout", "trace", "trace_image"]
