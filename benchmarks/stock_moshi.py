"""The `moshi` package's server, unchanged but for one call: its warm-up ends with `torch.cuda.synchronize()`, which
raises where there is no GPU. Arguments are those of `python -m moshi.server`.
"""

import runpy

import torch

__all__ = ["main"]


def main() -> None:
    """Run it."""
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None
    runpy.run_module("moshi.server", run_name="__main__")


if __name__ == "__main__":
    main()
