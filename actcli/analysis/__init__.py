"""The mathematics: numbers in, a report out; no config, no printing, no files."""
