"""Causal tracing of facts and of pictures, attention knockout, and the attention maps of words."""

from interp.tracing.attention_maps import AttentionMaps, attention_maps
from interp.tracing.causal import TraceResult, trace
from interp.tracing.image import ImageTraceResult, trace_image
from interp.tracing.knockout import KnockoutResult, knockout

__all__ = [
    "AttentionMaps", "ImageTraceResult", "KnockoutResult", "TraceResult", "attention_maps", "knockout", "trace",
    "trace_image",
]  # fmt: skip
