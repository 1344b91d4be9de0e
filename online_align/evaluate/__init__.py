"""Measurements of what the project claims, printed as the benchmarks print theirs."""
