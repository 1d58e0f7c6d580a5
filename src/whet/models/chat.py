"""A prompt as one user message in the model's own chat template."""

from __future__ import annotations

from typing import Any

from whet.errors import OptionError


def chat_prompt(tokenizer: Any, prompt: str) -> str:
    """The text a chat model is to continue. Errors: OptionError where there is no template."""
    if not tokenizer.chat_template:
        raise OptionError("the tokenizer has no chat template: leave --chat off")
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
