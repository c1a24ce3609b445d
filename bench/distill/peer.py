"""The peer: transformers' own models in a plain distillation loop, one student per exit.

The teacher runs in full at every step, the student is the truncated model with one trained layer, and the loss is the
KL divergence over the whole vocabulary. It gets every advantage it can have: weights already in the type of the
computation, no gradients below the trained layer, batches of like length, no attention mask (padding is on the right).
"""

import copy
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

from bench.distill.ours import settle
from bench.distill.work import Work
from bench.peers.llama import is_plain_llama, llama_fields
from models.architecture import Architecture
from models.distill.config import ExitConfig
from models.distill.network.decoder import padded
from models.distill.run.trainer import BETAS
from models.errors import ConfigError
from models.sources.source import ModelSource

Batch = dict[str, Tensor]
"""`input_ids` and `is_real`, [B, T] each."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Settings:
    """What both loops take from fenhe's configuration. `is_bf16`: autocast to bf16."""

    learning_rate: float
    weight_decay: float
    clip_norm: float
    device: torch.device
    is_bf16: bool


TimeLoop = Callable[[LlamaForCausalLM, LlamaForCausalLM, Sequence[Batch], Settings], float]
"""From student, teacher and batches to the seconds that one pass over the batches took."""


class Peer:
    """The teacher, loaded once, and the training loop that can run here."""

    def __init__(self, work: Work, time_loop: TimeLoop | None = None) -> None:
        """Raises: ConfigError for a model that is no plain Llama."""
        self._work = work
        self.teacher = load_teacher(work.source, work.trunk.dtype, work.trunk.device)
        self._time_loop = time_loop or choose_loop()
        training = work.config.training
        self.settings = Settings(
            learning_rate=work.config.learning_rate.peak,
            weight_decay=training.weight_decay,
            clip_norm=training.clip_norm,
            device=work.trunk.device,
            is_bf16=work.trunk.dtype is torch.bfloat16,
        )
        self.batches = [_batch(work, indices) for indices in work.order]

    @property
    def name(self) -> str:
        return "transformers.Trainer" if self._time_loop is time_trainer else "plain loop over transformers' models"

    def time_exit(self, exit: ExitConfig) -> float:
        """Seconds of one epoch for one student. Loading it is not included."""
        student = truncated(self.teacher, self._work.layout.depth(exit))
        return self._time_loop(student, self.teacher, self.batches, self.settings)


def choose_loop() -> TimeLoop:
    """`transformers.Trainer` where it can run, which takes accelerate; else the same loop written out."""
    return time_plain if importlib.util.find_spec("accelerate") is None else time_trainer


def load_teacher(source: ModelSource, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """Frozen. Raises: ConfigError for a model that is no plain Llama."""
    model: Any = LlamaForCausalLM(llama_config(source.architecture))
    weights = {name: torch.from_numpy(source.read(name)) for name in source.tensor_names()}
    if source.architecture.has_tied_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    loaded: LlamaForCausalLM = model.requires_grad_(False).to(device, dtype).eval()
    return loaded


def llama_config(architecture: Architecture) -> LlamaConfig:
    """Raises: ConfigError for a model that is no plain Llama."""
    if not is_plain_llama(architecture):
        raise ConfigError("the peer is a Llama without stretched rotary positions; give such a --teacher")
    return LlamaConfig(
        **llama_fields(architecture),
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        use_cache=False,
    )


def truncated(teacher: LlamaForCausalLM, depth: int) -> LlamaForCausalLM:
    """The first `depth` layers and a trained fp32 copy of the last one; all else is the teacher's own, frozen."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = depth + 1
    with torch.device("meta"):
        student = LlamaForCausalLM(config)
    trained = copy.deepcopy(teacher.model.layers[-1]).float().requires_grad_(True)
    student.model.embed_tokens = teacher.model.embed_tokens
    student.model.layers = nn.ModuleList([*teacher.model.layers[:depth], trained])
    student.model.norm = teacher.model.norm
    student.model.rotary_emb = teacher.model.rotary_emb
    student.lm_head = teacher.lm_head
    return student


def distillation_loss(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """Mean KL(teacher || student) over the positions that have a next token. Units: nats."""
    with torch.no_grad():
        teacher_BTV = teacher(input_ids=batch["input_ids"]).logits
    student_BTV = student(input_ids=batch["input_ids"]).logits
    counts = batch["is_real"][:, 1:]
    student_NV, teacher_NV = (
        log_softmax(logits[:, :-1][counts].float(), dim=-1) for logits in (student_BTV, teacher_BTV)
    )
    return kl_div(student_NV, teacher_NV, reduction="batchmean", log_target=True)


def time_plain(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, batches: Sequence[Batch], settings: Settings
) -> float:
    """What `transformers.Trainer` does at every step, without the Trainer."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay)
    student.train()
    begun_s = time.perf_counter()
    for batch in batches:
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=settings.is_bf16):
            loss = distillation_loss(student, teacher, _moved(batch, settings.device))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
    settle(settings.device)
    return time.perf_counter() - begun_s


def time_trainer(
    student: LlamaForCausalLM, teacher: LlamaForCausalLM, batches: Sequence[Batch], settings: Settings
) -> float:
    """From the Trainer's first step to its last: its setting up and its writing are left out."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Distilling(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return distillation_loss(model, teacher, inputs)

    class Clock(TrainerCallback):
        begun_s = ended_s = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun_s = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended_s = time.perf_counter()

    clock = Clock()
    with TemporaryDirectory(prefix="fenhe-bench-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip_norm,
            bf16=settings.is_bf16,
            use_cpu=settings.device.type == "cpu",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Distilling(
            model=student,
            args=arguments,
            train_dataset=list(batches),
            data_collator=lambda rows: rows[0],
            callbacks=[clock],
        )
        trainer.train()
    settle(settings.device)
    return clock.ended_s - clock.begun_s


def _batch(work: Work, indices: Sequence[int]) -> Batch:
    ids_BT, is_real_BT = padded([work.examples[index].token_ids for index in indices])
    return {"input_ids": ids_BT, "is_real": is_real_BT}


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
