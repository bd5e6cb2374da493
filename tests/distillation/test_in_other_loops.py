"""The loss and the teacher in loops that are not ours."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from alloykit.distillation.objective import DistillationLoss
from alloykit.distillation.teacher import Teacher


def data(count=48):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def agreement(student, teacher, x):
    return float(DistillationLoss(alpha=0)(student(x), teacher(x)).detach())


def test_a_plain_loop():
    x, y = data()
    student, teacher = net(0), Teacher([net(1), net(2)])
    loss_of = DistillationLoss("kl", alpha=0.1)
    before = agreement(student, teacher, x)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(student(x), teacher(x), y).backward()
        optimizer.step()
    assert agreement(student, teacher, x) < before / 4


def test_a_lightning_module(tmp_path):
    with warnings.catch_warnings():
        # Lightning imports what other packages have deprecated.
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")

    class Distilling(lightning.LightningModule):
        def __init__(self, student, teacher):
            super().__init__()
            self.student, self.teacher = student, teacher
            self.loss = DistillationLoss("kl", alpha=0.1)

        def training_step(self, batch, index):
            x, y = batch
            return self.loss(self.student(x), self.teacher(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    x, y = data()
    teaching = net(1)
    held = {name: tensor.clone() for name, tensor in teaching.state_dict().items()}
    module = Distilling(net(0), Teacher(teaching))
    before = agreement(module.student, module.teacher, x)
    with warnings.catch_warnings():
        # It advises on numbers of workers, and uses what torch has deprecated.
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=10, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=16))
        trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    assert agreement(module.student, module.teacher, x) < before / 4
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("student.") for name in saved)
    assert all(torch.equal(tensor, held[name]) for name, tensor in teaching.state_dict().items())


def language_model(transformers, seed, width):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def distilling_trainer(transformers, teacher, loss):
    class DistillingTrainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            found = loss(outputs, teacher(dict(inputs)), labels, num_items=num_items_in_batch)
            return (found, outputs) if return_outputs else found

    return DistillingTrainer


def sentences():
    """Of unequal lengths, so that batches have unequal numbers of tokens."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for place in range(16):
        words = torch.randint(1, 32, (8,), generator=generator)
        labels = words.clone()
        labels[2 + place % 6 :] = -100
        found.append({"input_ids": words, "labels": labels})
    return found


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_transformers_trainer(tmp_path, monkeypatch, accumulate):
    """num_items_in_batch: the same weights whether a batch comes whole or in four parts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        # It imports what other packages have deprecated, and says so again while it trains.
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        student = language_model(transformers, 0, 8)
        teaching = language_model(transformers, 1, 16)
        teacher = Teacher(teaching, task="tokens")
        loss = DistillationLoss("kl", task="tokens", shift=True, alpha=0.2, chunk=128)
        settings = transformers.TrainingArguments(
            output_dir=tmp_path, max_steps=1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant",
            per_device_train_batch_size=16 // accumulate, gradient_accumulation_steps=accumulate,
            report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, max_grad_norm=0.0,
            logging_strategy="no",
        )  # fmt: skip
        expected = language_model(transformers, 0, 8)
        trainer = distilling_trainer(transformers, teacher, loss)(
            student, settings, train_dataset=sentences()
        )
        trainer.train()
    batch = {key: torch.stack([s[key] for s in sentences()]) for key in ("input_ids", "labels")}
    words = {"input_ids": batch["input_ids"]}
    loss(expected(**words), teacher(words), batch["labels"]).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.1 * parameter.grad
    for one, other in zip(student.parameters(), expected.parameters(), strict=True):
        assert_close(one.detach(), other.detach(), atol=1e-6, rtol=1e-4)
