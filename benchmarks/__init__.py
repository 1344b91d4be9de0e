"""Side-by-side measurements: each is `python -m benchmarks.NAME [--json]`, and each runs its peer in the same run."""
