"""Who says what in the bank: for each voice a fixed random list in which every part of the domain comes early.

Owns the choice of lines and how many of them a voice speaks; knows nothing of sound. Each caller speaks a sample of
the questions only: together they cover the domain many times, and synthesis is the costly part.
"""

from __future__ import annotations

import random
import zlib

from recipes.mini import faults, voices, wordings

__all__ = ["SHARES", "STRANGE", "allowed", "lines", "own_lines", "speed"]

STRANGE = "strange"  # what asks nothing
SHARES = {  # of what callers ask
    "sums": 0.26,
    "capitals": 0.15,
    "opposites": 0.12,
    "sequences": 0.14,
    "colours": 0.05,
    "tellings": 0.08,
    "greetings": 0.07,
    "names": 0.04,
    "declines": 0.03,
    "unknown": 0.05,
    STRANGE: 0.09,
}
COUNTS = {"hibari": 10_000, "kokoro": 64, "festival": 250}
QUICK = 400
FILLER_EVERY = 12
ALWAYS = ("my_name", "stop", "there")
STRANGE_PIECES = {"kokoro": 6}  # pieces of sentences that ask nothing
QUICK_STRANGE = 24


def lines(voice: str, *, scale: float = 1.0) -> list[dict]:
    """What `voice` says, as rows of the bank without sound; `scale` shortens a caller's list."""
    if voice == voices.MODEL_VOICE:
        return list(allowed(voice).values())
    rng = random.Random(zlib.crc32(voice.encode()))
    count = int(COUNTS.get(voice.split(maxsplit=1)[0], QUICK) * scale)
    chosen = _mixed(wordings.questions(), rng, count // 2 if voice in voices.HELDOUT else count)
    if voice in voices.HELDOUT:
        chosen += _mixed(wordings.questions(heldout_wordings=True), rng, count // 2, kind="heldout-")
        chosen += _mixed(wordings.questions(heldout_items=True), rng, count // 8, kind="item-")
        rng.shuffle(chosen)
        return chosen
    filler = wordings.phonetic_filler()
    rng.shuffle(filler)
    hums = [_filler(text) for text in wordings.BACKCHANNELS]
    return (
        hums
        + chosen
        + [_filler(text) for text in filler[: count // FILLER_EVERY]]
        + _always(rng)
        + _strange(voice, scale)
    )


def own_lines(callers: list[str] | None = None, *, scale: float = 1.0) -> list[dict]:
    """What a model's voice needs to answer these callers, right or wrong; without `callers`, everybody."""
    if callers is None:
        return [line for line in allowed(voices.MODEL_VOICE).values() if line["kind"] == "reply"]
    asked = {line["reply"] for caller in callers for line in lines(caller, scale=scale) if line["reply"]}
    asked |= {wrong for reply in asked if (wrong := faults.wrong_reply(reply))} | {faults.TAKEOVER}
    return [line for text, line in allowed(voices.MODEL_VOICE).items() if text in asked]


def allowed(voice: str) -> dict[str, dict]:
    """Every sentence `voice` may say, by its text."""
    if voice == voices.MODEL_VOICE:
        own = [*wordings.replies(), *faults.wrong_replies()]
        found = {t: {"text": t, "kind": "reply", "reply": "", "category": "reply"} for t in own}
        return {t: _filler(t) for t in wordings.phonetic_filler() if t not in found} | found
    found = {q.text: dict(q.__dict__) for q in wordings.questions()}
    if voice in voices.HELDOUT:
        for prefix, more in (
            ("heldout-", wordings.questions(heldout_wordings=True)),
            ("item-", wordings.questions(heldout_items=True)),
        ):
            found |= {q.text: q.__dict__ | {"kind": prefix + q.kind} for q in more}
    return {t: _filler(t) for t in wordings.phonetic_filler()} | found


def speed(voice: str, text: str) -> float:
    """How fast `voice` says `text`, always the same for the same two."""
    rng = random.Random(zlib.crc32(f"{voice}{text}".encode()))
    return 1.0 if voice == voices.MODEL_VOICE else rng.uniform(0.9, 1.15)


def _always(rng: random.Random) -> list[dict]:
    """What every caller needs a few times, however short the list: it is said at special moments."""
    groups = ([q for q in wordings.questions() if q.kind == kind] for kind in ALWAYS)
    return [dict(q.__dict__) for group in groups for q in rng.sample(group, 2)]


def _strange(voice: str, scale: float) -> list[dict]:
    """Pieces of the tellings as a caller might say them to somebody else: Dua does not know what to make of them."""
    rng = random.Random(zlib.crc32(f"{voice} strange".encode()))
    words = [told.replace(",", "").replace(".", "").lower().split() for told in wordings.TELLINGS.values()]
    unknown = next(q for q in wordings.questions() if q.category == "unknown")
    found = []
    for _ in range(int(STRANGE_PIECES.get(voice.split(maxsplit=1)[0], QUICK_STRANGE) * scale)):
        told = rng.choice(words)
        start = rng.randrange(len(told) - 4)
        text = " ".join(told[start : start + rng.randint(4, 9)]).capitalize() + "."
        found.append(unknown.__dict__ | {"text": text, "kind": STRANGE})
    return found


def _filler(text: str) -> dict:
    return {"text": text, "kind": "filler", "reply": "", "category": "filler"}


def _mixed(asked: tuple[wordings.Question, ...], rng: random.Random, count: int, kind: str = "") -> list[dict]:
    """`count` questions; any beginning of the list has the categories in about their shares."""
    queues = {c: _waves([q for q in asked if q.category == c], rng) for c in SHARES}
    queues = {c: queue for c, queue in queues.items() if queue}
    given = dict.fromkeys(queues, 0)
    chosen: list[dict] = []
    while len(chosen) < count and any(queues.values()):
        open_to = [c for c in queues if queues[c]]
        category = min(open_to, key=lambda c: ((given[c] + 1) / SHARES[c], c))
        given[category] += 1
        question = queues[category].pop(0)
        chosen.append(question.__dict__ | {"kind": kind + question.kind})
    return chosen


def _waves(asked: list[wordings.Question], rng: random.Random) -> list[wordings.Question]:
    """Each distinct answer once per wave, in random order, so that a short list already covers much."""
    rng.shuffle(asked)
    waves: dict[str, list[wordings.Question]] = {}
    for question in asked:
        waves.setdefault(question.reply, []).append(question)
    ordered: list[wordings.Question] = []
    depth = 0
    while len(ordered) < len(asked):
        ordered += [w[depth] for w in waves.values() if depth < len(w)]
        depth += 1
    return ordered
