"""The subcommands: each file holds one, its options and a function of a few lines."""
