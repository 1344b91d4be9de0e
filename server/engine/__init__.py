"""Everything that touches the model, behind one door: load, open, step, close."""

from server.engine.engine import Engine, FrameOutput
from server.engine.frames import StageSeconds
from server.engine.params import SamplingParams

__all__ = ["Engine", "FrameOutput", "SamplingParams", "StageSeconds"]
