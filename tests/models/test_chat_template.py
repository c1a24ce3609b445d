from typing import Any

import pytest

from models.chat_template import ChatTemplate
from models.errors import BadRequest, ConfigError

HELLO = [{"role": "user", "content": "hi <b>"}]


def test_template_renders_like_transformers(tiny_source: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    source = (
        "{%- if tools is not none %}TOOLS{% endif %}{{ bos_token }}"
        "{% for m in messages %}\n  {% if m.role == 'system' %}\n    {% continue %}\n  {% endif %}\n"
        "{{ m | tojson }}{% generation %}[{{ m.content | trim }}]{% endgeneration %}{{ eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " é\n<>'"}]
    folder = tiny_source("llama")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ours = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    for flag in (True, False):
        theirs = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=flag
        )
        assert ours.render(messages, add_generation_prompt=flag) == theirs


def test_template_refusal_is_the_clients_error_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadRequest, match="roles must alternate") as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].nothing.more }}",
        "{{ messages[0]['content'] | int / 0 }}",
    ],
)
def test_template_that_stumbles_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ChatTemplate(source).render(HELLO)
    assert caught.value.message == "the chat template cannot render these messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{% for _ in range(10**9) %}{% endfor %}",
    ],
)
def test_template_stays_in_its_sandbox(source: str) -> None:
    messages = [dict(HELLO[0])]
    with pytest.raises(BadRequest):
        ChatTemplate(source).render(messages)
    assert messages == HELLO


def test_template_with_a_syntax_error_names_the_line() -> None:
    with pytest.raises(ConfigError, match="line 2"):
        ChatTemplate("{{ messages }}\n{% for %}")


def test_template_knows_the_date() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render(HELLO).isdigit()
