"""What transformers writes with the default student's weights: the reference and the engine must write the same."""

from typing import Any

from models.sources.source import ModelSource
from models.tokenizer import Tokenizer

NUM_TOKENS = 24
PROMPTS = (
    "What is the capital of France?",
    "Add 17 and 25.",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Name three prime numbers.",
    "Translate 'good morning' to Spanish.",
    "What does HTTP stand for?",
    "Who wrote Hamlet?",
    "Explain gravity to a child.",
    "List two kinds of trees.",
    "What is 12 times 12?",
    "Give me a synonym of quick.",
    "How many legs does a spider have?",
    "Write a haiku about rain.",
    "What is a contract?",
    "Is the earth flat?",
    "Say hello in French.",
    "What is Python used for?",
    "How do I boil an egg?",
    "Tell me a fact about Mars.",
)


def chat_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    assert tokenizer.chat_template is not None
    return tokenizer.encode(tokenizer.chat_template.render([{"role": "user", "content": prompt}]))


def greedy_tokens(source: ModelSource) -> dict[str, list[int]]:
    """The likeliest `NUM_TOKENS` tokens after every prompt, not stopping at end tokens; all prompts in one batch."""
    import torch

    tokenizer = source.tokenizer()
    rows = [chat_ids(tokenizer, prompt) for prompt in PROMPTS]
    width = max(map(len, rows))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        found = _transformers_llama(source).generate(
            padded, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False
        )
    return dict(zip(PROMPTS, found[:, width:].tolist(), strict=True))


def _transformers_llama(source: ModelSource) -> Any:
    """A transformers model with the weights that the reader gives."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    arch = source.architecture
    config = LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_heads,
        num_key_value_heads=arch.num_kv_heads,
        max_position_embeddings=arch.max_context_tokens,
        rms_norm_eps=arch.norm_eps,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with no_init_weights():
        model = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(source.read(name)) for name in source.tensor_names()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    model.train(False)
    return model
