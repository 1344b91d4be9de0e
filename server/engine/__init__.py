"""Everything that touches the model, behind one door: load, open, step, close."""

from server.engine.checkpoint import model_name
from server.engine.engine import Engine, FrameOutput
from server.engine.frames import StageSeconds
from server.engine.params import SamplingParams

__all__ = ["Engine", "FrameOutput", "SamplingParams", "StageSeconds", "model_name"]
