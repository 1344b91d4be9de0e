"""Write every sentence each training voice spoke in the bank a model was trained on, as JSON: voice -> sentences."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recipes.mini import bank, voices


def main() -> None:
    """Write the manifest of a bank."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    trained = bank.present(arguments.bank, (voices.MODEL_VOICE, *voices.USERS))
    rows = {v: sorted({row["text"] for row in bank.rows_of(arguments.bank, v)}) for v in trained}
    arguments.out.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
