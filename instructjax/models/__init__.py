"""Token ids to hidden states: the decoder, and the checkpoints it is filled from."""

from instructjax.models.config import DecoderConfig, RopeConfig
from instructjax.models.decoder import Decoder
from instructjax.models.model import Model, abstract_decoder, fill, load_model
from instructjax.models.spec import ALIASES, ModelSpec, parse_spec

__all__ = [
    "ALIASES",
    "Decoder",
    "DecoderConfig",
    "Model",
    "ModelSpec",
    "RopeConfig",
    "abstract_decoder",
    "fill",
    "load_model",
    "parse_spec",
]
