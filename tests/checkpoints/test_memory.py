import numpy as np
import pytest
import torch
from torch import nn

from alloykit.checkpoints.memory import MemoryCheckpoint, from_mapping
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, InvalidParameter, UnknownName


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def get_extra_state(self):
        return {"version": 2}


def test_a_module_gives_parameters_and_persistent_buffers():
    checkpoint = open_checkpoint(Tied())
    assert list(checkpoint.specs()) == ["steps", "embed.weight", "head.weight"]
    assert checkpoint.specs()["steps"].dtype == torch.int64
    assert checkpoint.notes == ("not a tensor, left out: _extra_state",)
    assert not checkpoint.read("embed.weight").requires_grad


def test_ties_share_a_place_and_lookalikes_do_not():
    weight = torch.ones(2, 3)
    specs = MemoryCheckpoint(
        {
            "a": weight,
            "b": weight,
            "transposed": weight.t(),
            "row": weight[0],
            "empty": weight[:0],
            "void": weight[:0],
            "copy": weight.clone(),
        }
    ).specs()
    assert specs["a"].place == specs["b"].place == "a"
    assert len({spec.place for spec in specs.values()}) == 6


def test_the_id_is_the_digest_of_the_content_by_default():
    first, second = open_checkpoint({"w": torch.ones(2)}), open_checkpoint({"w": torch.ones(2)})
    assert first.id == second.id
    assert first.id.startswith("sha256:")
    assert open_checkpoint({"w": torch.zeros(2)}).id != first.id
    assert open_checkpoint({"v": torch.ones(2)}).id != first.id
    assert open_checkpoint({"w": torch.ones(2)}, name="mine").id == "mine"


def test_numpy_arrays_and_lists():
    big = np.arange(3, dtype=">f4")
    fixed = np.arange(4.0).reshape(2, 2).T
    fixed.flags.writeable = False
    checkpoint = open_checkpoint([big, fixed, torch.tensor(True), np.float32(3)])
    assert list(checkpoint.specs()) == ["0", "1", "2", "3"]
    assert checkpoint.read("0").tolist() == [0.0, 1.0, 2.0]
    assert checkpoint.read("1").tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert checkpoint.specs()["2"].shape == checkpoint.specs()["3"].shape == ()


def test_lazy_conjugates_are_resolved():
    value = torch.tensor([1 + 2j])
    assert torch.equal(
        torch.view_as_real(MemoryCheckpoint({"w": value.conj()}).read("w")),
        torch.tensor([[1.0, -2.0]]),
    )


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
        (
            lambda: torch.nested.nested_tensor(
                [torch.ones(2), torch.ones(3)], layout=torch.strided
            ),
            "nested",
        ),
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4"),
    ],
    ids=["sparse", "meta", "quantised", "nested", "packed"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_combined_are_named(bad, word):
    odd = bad()
    with pytest.raises(CheckpointError, match=rf"(?s)'?odd'?: .*{word}"):
        MemoryCheckpoint({"fine": torch.ones(1), "odd": odd}, "a")


def test_everything_that_is_no_tensor_is_listed():
    state = {"epoch": 3, "nested": {"w": 1}, 5: torch.ones(1), "o": np.array([None])}
    with pytest.raises(CheckpointError) as caught:
        from_mapping(state, "run")
    text = str(caught.value)
    assert "run is not a dictionary of named tensors" in text
    for line in ("epoch: it is a int", "nested: it is a dict", "5: the name", "o: it is a NumPy"):
        assert line in text


def test_an_empty_checkpoint_is_an_error():
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint({})
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint(nn.ReLU())


def test_unknown_names_and_ranges_outside():
    checkpoint = open_checkpoint({"weight": torch.ones(3)}, name="a")
    with pytest.raises(UnknownName, match=r"a has no tensor 'wieght'. Did you mean 'weight'?"):
        checkpoint.read("wieght")
    for start, stop in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(InvalidParameter, match="weight has 3 elements"):
            checkpoint.read("weight", start=start, stop=stop)
