"""Tensors in, tensors out: the operations that experiments spend their time in."""
