"""Fine-tuning of a sequence classifier in PyTorch `transformers` on the CPU, for comparison with `python -m train`.

    python -m train.benchmark.torch_classifier configs/sst2.py [--flags]

Uses the same parameters, batches, optimizer, schedule and clipping as `python -m train` with the same arguments. Each
batch is cut to its longest row, because PyTorch does not compile for each length. Prints seconds and accuracy.
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from flaxbert.models import BertModel
from train.benchmark.implementations import parameter_groups
from train.command import load_config, parse_flags
from train.config import Config
from train.distributed import HostBatch
from train.optim.algorithms import AdamW
from train.optim.schedules import Linear
from train.tasks.sequence_classification import SequenceClassification, SequenceClassificationTask


def main(arguments: list[str]) -> None:
    """Train and evaluate as the config specifies."""
    config: Config = parse_flags(
        load_config(Path(arguments[0])), arguments[1:], module="train.benchmark.torch_classifier"
    )
    if not isinstance(config.task, SequenceClassification) or config.model.pretrained is None:
        raise SystemExit("the config must fine-tune a pretrained folder for sequence classification")
    torch.manual_seed(config.run.seed)
    start = time.perf_counter()
    task = dataclasses.replace(config.task, packed=False).prepare(config)
    model = transformers.BertForSequenceClassification.from_pretrained(
        config.model.pretrained, num_labels=task.config.num_labels
    )
    total_steps = config.run.total_steps(task.steps_per_epoch)
    train_torch(model, config, task, total_steps)
    trained = time.perf_counter()
    found = {name: accuracy(model, task, name) for name in task.evaluations}
    ended = time.perf_counter()
    print(f"trained {total_steps} steps; {trained - start:.1f} s to train, {ended - trained:.1f} s to evaluate")
    print("  ".join(f"{name} accuracy {value:.4f}" for name, value in found.items()))


def train_torch(
    model: torch.nn.Module, config: Config, task: SequenceClassificationTask, total_steps: int
) -> list[float]:
    """Train all steps and print a line every 100; return the loss of each step."""
    optim = config.optim
    algorithm = optim.algorithm
    plain_settings = optim.schedule == Linear() and optim.layer_decay == 1.0 and not optim.frozen
    if not isinstance(algorithm, AdamW) or not plain_settings:
        raise SystemExit("the config must use AdamW, the Linear schedule, and neither layer_decay nor frozen")
    betas = (algorithm.beta1, algorithm.beta2)
    groups = parameter_groups(model, optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=algorithm.epsilon)
    warmup = round(optim.warmup * total_steps)
    rates = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total_steps)
    model.train()
    losses = []
    start = time.perf_counter()
    for number in range(total_steps):
        batch = batch_tensors(task.train[number])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_gradient_norm)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (number + 1) % 100 == 0:
            elapsed = time.perf_counter() - start
            print(f"step {number + 1}/{total_steps}  loss {losses[-1]:.4f}  {elapsed:.0f} s", flush=True)
    return losses


def accuracy(model: torch.nn.Module, task: SequenceClassificationTask, name: str) -> float:
    """Return the accuracy on one of the task's evaluation sets."""
    labels = task.evaluations[name].examples.labels
    return float(np.mean(predictions(model, task, name) == labels))


def predictions(model: torch.nn.Module, task: SequenceClassificationTask, name: str) -> np.ndarray:
    """Return the label with the highest score of each example of an evaluation set [N]."""
    model.eval()
    batches, found = task.evaluations[name], []
    with torch.inference_mode():
        for batch in map(batch_tensors, batches):
            del batch["labels"]
            found.append(model(**batch).logits.argmax(-1).numpy())
    return np.array(batches.by_example(found))


def batch_tensors(batch: HostBatch) -> dict[str, torch.Tensor]:
    """Return a host batch as tensors, without filler rows and without columns beyond the longest row."""
    rows = batch["weight"] > 0
    length = int(batch["attention_mask"].sum(axis=1).max())
    cut = {name: torch.tensor(batch[name][rows, :length], dtype=torch.long) for name in BertModel.input_names}
    return {**cut, "labels": torch.tensor(batch["labels"][rows], dtype=torch.long)}


if __name__ == "__main__":
    main(sys.argv[1:])
