"""Activation patching."""

from interp.patching.activation import PatchResult, patch

__all__ = ["PatchResult", "patch"]
