"""Edits as values, and the waist that runs them: run, sweep, generate, differentiable."""
