"""What a recipe holds: its keys, their types, and what each is for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    WithJsonSchema,
)

_SCALAR = {"type": ["number", "boolean", "string"]}
_VALUES = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]}
_RULE = {
    "type": "object",
    "properties": {"filter": {"type": "string"}, "value": _VALUES},
    "required": ["value"],
    "additionalProperties": False,
}
Value = Annotated[
    Any,
    WithJsonSchema(
        {
            "description": "A number, word or truth value; a list of them, spread evenly over the "
            "layers; or a list of {filter, value}, of which the first whose filter is part of the "
            "tensor's name counts.",
            "anyOf": [*_VALUES["anyOf"], _RULE, {"type": "array", "items": _RULE, "minItems": 1}],
        }
    ),
]
DTYPES = ("float16", "bfloat16", "float32", "float64")
DType = Annotated[
    Literal["float16", "bfloat16", "float32", "float64"],
    BeforeValidator(lambda name: name.removeprefix("torch.") if isinstance(name, str) else name),
]


class Strict(BaseModel):
    """A mapping that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelEntry(Strict):
    """One of the models: where it lies, and what holds for it alone."""

    model: StrictStr = Field(
        min_length=1, description="Path of a checkpoint: .safetensors, .pt, .npz, a sharded folder."
    )
    name: StrictStr | None = Field(
        default=None,
        min_length=1,
        description="What it is called; by default the file's stem. Random methods draw by it.",
    )
    parameters: dict[str, Value] | None = Field(
        default=None, description="weight, and the method's parameters that may differ by model."
    )
    stats: dict[str, str] | None = Field(
        default=None, description="Statistics that the method needs: fisher or gram -> their file."
    )


class RecipeContent(Strict):
    """A merge, written down: the method, the models, their base, the parameters."""

    merge_method: StrictStr = Field(description="Name of the method; alloykit methods lists them.")
    models: list[ModelEntry] = Field(description="The models to merge.")
    base_model: StrictStr | None = Field(
        default=None,
        min_length=1,
        description="The checkpoint that the models were fine-tuned from.",
    )
    parameters: dict[str, Value] | None = Field(
        default=None, description="Of the method, for all models that have none of their own."
    )
    weights: list[float] | None = Field(
        default=None,
        description="One per model; shorter than a weight among each model's parameters.",
    )
    dtype: DType | None = Field(
        default=None,
        description="Of the result, unless out_dtype is given. Arithmetic is in float32.",
    )
    out_dtype: DType | None = Field(
        default=None, description="Of the result; by default the models' own."
    )
    seed: int | None = Field(default=None, ge=0, description="Of methods that draw random numbers.")
    compat: Literal["mergekit"] | None = Field(
        default=None, description="mergekit: its formulas, where ours follow the paper."
    )
