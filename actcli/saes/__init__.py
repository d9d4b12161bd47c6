"""Sparse dictionaries: SAEs and transcoders, in whatever format they were published."""
