"""Steering: editing weights so that a concept is read as another, and measuring what that did."""

from interp.steering.closed_form import edit_concept
from interp.steering.edit_report import EditReport, edit_report
from interp.steering.weight_edit import EditedDenoiser, load_edit, random_edit

__all__ = ["EditReport", "EditedDenoiser", "edit_concept", "edit_report", "load_edit", "random_edit"]
