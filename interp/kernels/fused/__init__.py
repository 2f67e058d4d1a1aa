"""The operations of `interp.kernels` as Triton kernels: one file each, with kernel, launcher and gradient.

Only `interp.kernels` imports these files, and only when a tensor on a GPU asks for them (`interp.kernels.path`). Every
launcher has the signature of the PyTorch reference and refuses what its kernel was not made for.
"""
