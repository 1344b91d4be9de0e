"""Write `manifest.json`: every sentence each training voice spoke in the bank the shipped model was trained on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recipes.mini import bank, voices


def main() -> None:
    """Write the manifest of a bank."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    arguments = parser.parse_args()
    trained = [voices.MODEL_VOICE, *voices.KOKORO_USERS, *voices.CLASSIC_USERS]
    rows = {v: sorted({u.text for u in bank.load(arguments.bank, v)[0]}) for v in trained}
    (Path(__file__).parent / "manifest.json").write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
