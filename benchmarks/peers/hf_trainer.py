"""Peer: Llama of transformers under its own Trainer; a callback after each step waits for the next turn."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from hf import llama
from transformers import Trainer, TrainerCallback, TrainingArguments
from worker import ADAMW, CLIP, enter


class Rows(torch.utils.data.Dataset):
    """Random rows; Trainer's model shifts the labels itself, so a row is one token longer for equal targets."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 1 << 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index % len(self.rows)]
        return {"input_ids": row, "labels": row}


class Wait(TrainerCallback):
    """Ends the training when the race does."""

    def __init__(self, turn: Any) -> None:
        self.turn = turn

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = next(self.turn, None) is None
        return control


class Told(Trainer):
    """Notes the loss of each step, as the other contenders do."""

    note: dict[str, Any]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.note["loss"] = loss.item()
        return loss


if __name__ == "__main__":
    case, turns = enter()
    model = llama(case)
    turns.note["parameters"] = sum(p.numel() for p in model.parameters())
    rows = torch.cat([tokens.cpu() for tokens, _ in case.batches()])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=case.batch,
            max_steps=1 << 25,
            learning_rate=ADAMW["lr"],
            lr_scheduler_type="constant",
            weight_decay=ADAMW["weight_decay"],
            adam_beta1=ADAMW["betas"][0],
            adam_beta2=ADAMW["betas"][1],
            adam_epsilon=ADAMW["eps"],
            max_grad_norm=CLIP,
            optim="adamw_torch_fused",
            bf16=case.dtype == "bfloat16",
            use_cpu=case.device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        turn = iter(turns)
        next(turn)
        trainer = Told(model=model, args=arguments, train_dataset=Rows(rows), callbacks=[Wait(turn)])
        trainer.note = turns.note
        trainer.train()
