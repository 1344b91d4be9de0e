"""The screen of a call in a terminal: the model's words, both levels, how late it is, and what the server saw.

Drawn by `rich`, eight times a second, in a thread of its own: a terminal that is held (Ctrl-S) holds nobody else. It
reads the state and writes to the terminal alone; where there is no terminal there is no screen, and no word of the
conversation is written anywhere.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from client.call_state import CallState, Connection
from client.jitter import JitterFigures
from client.levels import SILENT_DBFS
from client.microphone import Microphone
from client.speaker import Speaker

__all__ = ["PlainScreen", "Screen", "clock"]

_PER_SECOND: Final = 8
_KEYS: Final = "[b]space[/b] mute   [b]+[/b] good   [b]-[/b] not good   [b]q[/b] hang up"
_BAR: Final = 30
_METER_FLOOR_DBFS: Final = -60.0
_MODEL_MS: Final = 160
_COLOURS: Final = {
    Connection.TALKING: "green",
    Connection.STALLED: "yellow",
    Connection.LOST: "red",
    Connection.WAITING: "yellow",
}
_SAYINGS: Final = {
    Connection.CALLING: "calling",
    Connection.WAITING: "waiting for a place",
    Connection.TALKING: "connected",
    Connection.STALLED: "connected, but nothing comes",
    Connection.LOST: "connection lost",
    Connection.OVER: "over",
}


class Screen:
    """Everything about one call on one screen, for as long as the block lasts."""

    def __init__(self, place: str, state: CallState, microphone: Microphone, speaker: Speaker) -> None:
        self._place = place
        self._state = state
        self._microphone = microphone
        self._speaker = speaker
        self._console = Console(highlight=False)
        self._live = Live(
            get_renderable=self._draw,
            console=self._console,
            screen=True,
            refresh_per_second=_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        layout = Layout()
        layout.split_column(
            Layout(self._figures(), size=6),
            Layout(self._words(), ratio=1, minimum_size=3),
            Layout(self._events(), size=9),
            Layout(Text.from_markup(_KEYS, style="dim", justify="center"), size=1),
        )
        return layout

    def _figures(self) -> RenderableType:
        figures = self._speaker.jitter.figures()
        table = Table.grid(padding=(0, 1))
        muted = Text("MUTED", style="bold red") if self._microphone.muted else Text("")
        table.add_row("you", _bar(self._microphone.level_dbfs), muted)
        table.add_row("model", _bar(self._speaker.level_dbfs), "")
        return Panel(
            Group(table, _timing(self._state, figures), _standing(self._state, figures)),
            title=f"Duologue  {self._place}",
            subtitle=_connection(self._state),
        )

    def _words(self) -> RenderableType:
        """The last of the model's words that find room."""
        width, height = self._console.size
        wrapped = Text(self._state.words.strip()).wrap(self._console, max(10, width - 4))
        room = max(1, height - 6 - 9 - 1 - 2)
        return Panel(Text("\n").join(wrapped[-room:]), title="what the model says", title_align="left")

    def _events(self) -> RenderableType:
        signals = [f"{clock(each.t)}  {each.kind.replace('_', ' ')}" for each in self._state.signals]
        seen = Text("\n".join(signals[-4:]) or "nothing yet", style="dim" if not signals else "")
        latest_first = reversed(list(self._state.notices))
        notices = Text("\n".join(sentence for _, sentence in latest_first), style="yellow")
        columns = Table.grid(expand=True, padding=(0, 1))
        columns.add_column(ratio=1)
        columns.add_column(ratio=2)
        columns.add_row(seen, notices)
        return Panel(columns, title="what the server noticed", title_align="left")


class PlainScreen:
    """For standard output that is no terminal: states and sentences to standard error, and no words."""

    def __init__(self, state: CallState, say: Callable[[str], None]) -> None:
        self._state = state
        self._say = say
        self._said: Connection | None = None
        self._told_at = 0.0

    def refresh(self) -> None:
        """Say what is new."""
        if self._state.connection is not self._said:
            self._said = self._state.connection
            self._say(_SAYINGS[self._state.connection])
        for at, sentence in list(self._state.notices):
            if at > self._told_at:
                self._told_at = at
                self._say(sentence)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def _bar(level_dbfs: float) -> Text:
    share = min(1.0, max(0.0, 1 - level_dbfs / _METER_FLOOR_DBFS))
    filled = round(share * _BAR)
    colour = "red" if level_dbfs > -3 else "green" if level_dbfs > -45 else "dim"
    figure = "   silent" if level_dbfs <= SILENT_DBFS else f"{level_dbfs:6.0f} dB"
    return Text("█" * filled, style=colour) + Text("·" * (_BAR - filled), style="dim") + Text(figure)


def _connection(state: CallState) -> Text:
    colour = _COLOURS.get(state.connection, "dim")
    again = f", {state.reconnected}x called again" if state.reconnected else ""
    return Text(f"{_SAYINGS[state.connection]}  {clock(state.age_s)}{again}", style=colour)


def _timing(state: CallState, figures: JitterFigures) -> Text:
    delay = "…" if state.delay_ms is None else f"{state.delay_ms:.0f} ms ({_MODEL_MS} of them the model's)"
    return _line(f"delay {delay}", f"buffer {figures.waiting_ms:.0f} ms", f"gaps {figures.underruns}")


def _standing(state: CallState, figures: JitterFigures) -> Text:
    parts = [f"lag {state.lag_ms} ms", f"lost {state.lost_ms + figures.dropped_ms:.0f} ms"]
    parts += [f"adapter {state.adapter or 'none'}"] if state.session else []
    parts += [f"this call is {state.consent}"] if state.consent else []
    return _line(*parts)


def _line(*parts: str) -> Text:
    return Text("   ".join(parts), no_wrap=True, overflow="ellipsis")
