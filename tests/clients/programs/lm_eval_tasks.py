"""lm-eval, its models `local-chat-completions` and `local-completions`, on a task of four questions."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.programs.program import Result, Target, run

QUESTIONS = (
    ("The capital of France is", ["Paris", "Oslo"], 0),
    ("The opposite of hot is", ["blue", "cold"], 1),
    ("Two plus two is", ["four", "green"], 0),
    ("A dog is an", ["hour", "animal"], 1),
)
CHOICES = """
task: suite_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
TEXTS = """
task: suite_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 16, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def evaluated(to: Target, task: str, model: str, path: str, **arguments: Any) -> Any:
    """The figures and the samples of a task."""
    with tempfile.TemporaryDirectory() as folder:
        questions = [{"question": asked, "choices": choices, "answer": answer} for asked, choices, answer in QUESTIONS]
        file = Path(folder, "questions.jsonl")
        file.write_text("".join(json.dumps(one) + "\n" for one in questions))
        for name, text in (("suite_choices", CHOICES), ("suite_texts", TEXTS)):
            Path(folder, f"{name}.yaml").write_text(text.format(file=file))
        told = {"model": to.model, "base_url": to.base_url + path, "num_concurrent": 2, "max_retries": 1, **arguments}
        command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task, "--include_path", folder]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in told.items())]
        command += ["--output_path", folder, "--log_samples"]
        command += ["--apply_chat_template"] if model == "local-chat-completions" else []
        environ = os.environ | {"OPENAI_API_KEY": to.key, "HF_HOME": folder, "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (figures,) = Path(folder).rglob("results_*.json")
        (samples,) = Path(folder).rglob("samples_*.jsonl")
        return json.loads(figures.read_text())["results"][task], list(map(json.loads, samples.open()))


def chat(to: Target) -> Result:
    _, samples = evaluated(to, "suite_texts", "local-chat-completions", "/chat/completions")
    texts = [sample["resps"][0][0] for sample in samples]
    assert len(texts) == len(QUESTIONS)
    return {"text": min(texts, key=len), "finish": None, "usage": None, "more": max(texts, key=len)}


def scores(to: Target) -> Result:
    """Choices by their log-probabilities, prompts as token ids."""
    options = {"tokenizer": to.tokenizer, "tokenizer_backend": "huggingface", "tokenized_requests": True}
    figures, samples = evaluated(to, "suite_choices", "local-completions", "/completions", **options)
    known = [float(score[0][0]) for sample in samples for score in sample["resps"]]
    assert 0 <= figures["acc,none"] <= 1
    return {"answer": [[score, None] for score in known], "prompt": None}


if __name__ == "__main__":
    run({"chat": chat, "scores": scores}, "lm_eval")
