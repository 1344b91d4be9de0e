"""Make the short sounds that `evaluate --suite signals` mixes: backchannels and interruptions in four voices.

Run once by hand, with the recipe's synthesis packages and its folder of voices:
`python -m tests.align.make_short_sounds VOICES_FOLDER`. What it wrote is in the repository.
"""

import json
import sys
from pathlib import Path

import soundfile

from recipes.mini.voices import SAMPLE_RATE, speak

FOLDER = Path(__file__).parents[1] / "assets" / "short_sounds"
VOICES = ("kokoro am_michael", "kokoro bf_emma", "kokoro af_kore", "kokoro bm_george")
BACKCHANNELS = ("Mm-hm.", "Yes.", "Okay.", "Right.", "I see.")
INTERRUPTIONS = (
    "No, wait, that is not what I meant.",
    "Stop, please tell me something else.",
    "Hold on, I have another question.",
    "Excuse me, what is seven plus one?",
)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    index = []
    for number, voice in enumerate(VOICES):
        for kind, texts in (("backchannel", BACKCHANNELS), ("interruption", INTERRUPTIONS)):
            for position, text in enumerate(texts):
                name = f"{kind}_{number}{position}.opus"
                pcm = speak(voice, text, speed=1.0, assets=Path(sys.argv[1]))
                soundfile.write(FOLDER / name, pcm, SAMPLE_RATE, format="OGG", subtype="OPUS")
                index.append(
                    {"file": name, "kind": kind, "text": text, "voice": voice, "seconds": len(pcm) / SAMPLE_RATE}
                )
    (FOLDER / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
