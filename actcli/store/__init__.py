"""The activation store: the only reader and writer of dumps.

`header` needs the standard library alone, so that shell completion can look into a dump;
`reader` gives the tensors piece by piece, so that memory does not grow with the file.
"""
