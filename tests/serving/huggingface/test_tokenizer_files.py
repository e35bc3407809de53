"""Chat templates of a folder render the guard's prompt without arguments."""

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vigil_data.prompts.chat_template import ChatTemplate, render
from vigil_serving.huggingface.tokenizer_files import settled

# As Llama 3.2 writes today's date, and Qwen3 opens or skips a thought.
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today: {{ date_string }}\n{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{%- endif %}"
)


@pytest.mark.parametrize("template", [DATED, THINKING, DATED.replace("'%d %b %Y'", '"%Y-%m-%d"')])
def test_settled_renders_without_arguments_what_the_guard_was_trained_with(template: str) -> None:
    trained = render(ChatTemplate(template, {}, "t"))
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: f"another day ({form})"
    text = environment.from_string(settled(template)).render(messages=messages, add_generation_prompt=True)
    assert text == f"{trained.before}S{trained.between}U{trained.after}"
    assert environment.from_string(template).render(messages=messages, add_generation_prompt=True) != text
