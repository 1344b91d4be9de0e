"""Duologue's server. Importing this package loads neither torch nor moshi, so that a client starts at once."""
