"""Activation patching, of text and of pictures, and prompts swapped by phase of the denoising."""

from interp.patching.activation import PatchResult, patch
from interp.patching.phase import PhasesResult, phases
from interp.patching.pictures import PicturePatchResult, patch_pictures

__all__ = ["PatchResult", "PhasesResult", "PicturePatchResult", "patch", "patch_pictures", "phases"]
