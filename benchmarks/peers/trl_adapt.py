"""Peer: TRL's trainers over PEFT's adapters on transformers' Llama: fine-tuning, DPO, GRPO; a callback after each step
waits for the next turn."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from worker import enter


class Wait(TrainerCallback):
    """Ends the training when the race does."""

    def __init__(self, turn: Any, note: dict[str, Any]) -> None:
        self.turn, self.note = turn, note

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = next(self.turn, None) is None
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.note["loss"] = (logs or {}).get("loss", self.note.get("loss", 0.0))


def repeated(rows: list[Any], count: int) -> list[Any]:
    """As many rows as a race can use up, in their order."""
    return [rows[i % len(rows)] for i in range(count)]


def alternating(completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing."""
    return [float(i % 3) for i in range(len(completions))]


class Ready(trl.DPOTrainer):
    """DPO on ids that are there already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def trainer(work: str, plan: dict[str, Any], folder: str, wait: Wait) -> Any:
    """The trainer of a kind of work; what is not said here is TRL's own default, but for gradient checkpointing,
    which would make it slower."""
    lora = peft.LoraConfig(
        r=plan["rank"], lora_alpha=plan["alpha"], lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    tokenizer = AutoTokenizer.from_pretrained(plan["model"])
    model = AutoModelForCausalLM.from_pretrained(plan["model"], dtype=plan["dtype"])
    rows, batch = plan["rows"], plan["batch"]
    common: dict[str, Any] = {
        "output_dir": folder, "max_steps": 1 << 20, "learning_rate": 2e-4, "lr_scheduler_type": "constant",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "optim": "adamw_torch_fused",
        "bf16": case.dtype == "bfloat16", "use_cpu": True,
        "gradient_checkpointing": False, "report_to": [], "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "dataloader_pin_memory": False, "per_device_train_batch_size": batch, "seed": 0}
    shared = {"model": model, "processing_class": tokenizer, "peft_config": lora, "callbacks": [wait]}
    if work == "lora":
        data = [{"input_ids": r["prompt"] + r["answer"],
                 "completion_mask": [0] * len(r["prompt"]) + [1] * len(r["answer"])} for r in repeated(rows, 4096)]
        return trl.SFTTrainer(train_dataset=Dataset.from_list(data), args=trl.SFTConfig(
            **common, completion_only_loss=True, train_sampling_strategy="sequential", max_length=None), **shared)
    if work == "dpo":
        data = [{"prompt_ids": r["prompt"], "chosen_ids": r["answer"], "rejected_ids": r["rejected"]}
                for r in repeated(rows, 4096)]
        return Ready(train_dataset=Dataset.from_list(data), args=trl.DPOConfig(
            **common, beta=0.1, train_sampling_strategy="sequential", max_length=None), **shared)
    common["per_device_train_batch_size"] = batch * plan["samples"]
    data = [{"prompt": [{"role": "user", "content": r["request"]}]} for r in repeated(rows, 4096)]
    return trl.GRPOTrainer(train_dataset=Dataset.from_list(data), reward_funcs=alternating, args=trl.GRPOConfig(
            **common, beta=0.02, num_generations=plan["samples"], max_completion_length=plan["max_tokens"],
            temperature=1.0, top_k=0, shuffle_dataset=False,
        generation_kwargs={"min_new_tokens": plan["max_tokens"]}), **shared)


if __name__ == "__main__":
    case, turns = enter()
    plan = json.loads(Path(case.network).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        turn = iter(turns)
        next(turn)
        trainer(case.work, plan, folder, Wait(turn, turns.note)).train()
