"""`python -m interp`."""

from interp.cli import app

app()
