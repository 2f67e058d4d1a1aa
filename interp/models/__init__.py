"""A model: its sites, its hooks, and how it is loaded."""
