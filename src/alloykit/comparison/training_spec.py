"""How models learn, as a study file says it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A mapping that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid")


class TrainingSpec(Strict):
    """How models learn; the numbers of ``alloykit.Training``."""

    epochs: int = Field(20, ge=1, description="Passes over the data.")
    batch_size: int = Field(64, ge=1, description="Examples that the model sees at a time.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak step size.")
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW's decoupled decay; of SGD added to the gradient."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the step size falls."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Part of the steps over which it rises.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients make one step.")
    clip_norm: float | None = Field(None, gt=0, description="Longest gradient.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="What the forward pass computes in."
    )
    patience: int | None = Field(
        None, ge=1, description="Epochs without a better validation score before it stops."
    )
    seed: int = Field(0, ge=0, description="Of the order of the examples and of dropout.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="What makes the steps.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of SGD.")


class ClientTrainingSpec(TrainingSpec):
    """How clients of a federation learn: as ``TrainingSpec``, with other defaults."""

    epochs: int = Field(1, ge=1, description="Passes over a client's data in a round.")
    batch_size: int = Field(32, ge=1, description="Examples that the model sees at a time.")
    learning_rate: float = Field(0.05, gt=0, description="Step size.")
    weight_decay: float = Field(0.0, ge=0, description="Added to the gradient.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "constant", description="How the step size falls within a round."
    )
    patience: int | None = Field(
        None, ge=1, description="Not for clients, which have no validation data."
    )
    seed: int = Field(0, ge=0, description="Not looked at: the federation's seed decides.")
    optimizer: Literal["adamw", "sgd"] = Field("sgd", description="What makes the steps.")
