"""y ~ Pr(. | c, z): drawn with a KV cache, chosen among given ones, or searched for."""

from instructjax.sampling.api import sample
from instructjax.sampling.beam import beam_search
from instructjax.sampling.choose import Choice, choose
from instructjax.sampling.engine import Sampler, SamplingWork
from instructjax.sampling.responses import PromptToSample, Sampled
from instructjax.sampling.result import Samples
from instructjax.sampling.rows import SampledRow
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.table import SAMPLE_SCHEMA

__all__ = [
    "SAMPLE_SCHEMA",
    "Choice",
    "PromptToSample",
    "Sampled",
    "SampledRow",
    "Sampler",
    "Samples",
    "SamplingRules",
    "SamplingWork",
    "beam_search",
    "choose",
    "sample",
]
