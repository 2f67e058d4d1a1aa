"""Alignment: does a network compute a variable of a causal model, and where?"""
