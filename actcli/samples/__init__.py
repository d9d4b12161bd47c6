"""Samples: where the inputs of a model come from, and which of them are used."""
