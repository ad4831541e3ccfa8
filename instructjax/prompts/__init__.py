"""Text to token ids, with the exact span of every response."""

from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.options import LAYOUTS, PromptOptions
from instructjax.prompts.parts import CONTEXTS
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Tokenizer

__all__ = ["CONTEXTS", "LAYOUTS", "PromptEncoder", "PromptOptions", "Request", "Tokenizer"]
