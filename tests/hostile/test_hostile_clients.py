"""Every row of abuse that clients can think of, for every aggregator: never silent, never all."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alloykit.errors import AlloyError, CheckpointError, DataError, InvalidParameter
from alloykit.federation.aggregating import aggregate_updates
from alloykit.federation.checks import Checks
from alloykit.federation.update import Aggregated, Update
from client_samples import EVERY, SPREAD, built, honest, model, same_bits, trained, update

SERVER = model()
SENT = honest(SERVER)
STREAMING = Checks(examples_ratio=None, norm_ratio=None)
"""With these limits what comes one by one is added up where the aggregator is a sum."""

FAR = "over 100 times the median of all"

State = dict[str, Tensor]


def changed(*names: str, by: Callable[[Tensor], Any]) -> Callable[[Path], State]:
    """A client's model with some of its tensors changed."""
    mine = trained(SERVER, 99)
    return lambda _: mine | {name: by(mine[name]) for name in names}


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def put(tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        copy.reshape(-1)[3] = value
        return copy

    return put


def without(name: str) -> Callable[[Path], State]:
    return lambda _: {n: t for n, t in trained(SERVER, 99).items() if n != name}


def stored(tensors: State) -> dict[str, np.ndarray]:
    return {
        n: t.float().numpy() if t.dtype == torch.bfloat16 else t.numpy() for n, t in tensors.items()
    }


def archive(folder: Path, damage: Callable[[bytes], bytes]) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    np.savez(path, **stored(trained(SERVER, 99)))
    path.write_bytes(damage(path.read_bytes()))
    return path


def huge_header(folder: Path) -> Path:
    """An array of 14.6 TiB, says its header."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (2_000_000, 2_000_000)}
    )
    with zipfile.ZipFile(folder / "huge.npz", "w") as file:
        file.writestr("layer.weight.npy", head.getvalue() + b"\0" * 64)
    return folder / "huge.npz"


def pickled(folder: Path) -> Path:
    np.savez(folder / "objects.npz", w=np.array([{"a": 1}], dtype=object))
    return folder / "objects.npz"


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one NaN": (changed("layer.weight", by=with_value(math.nan)), "layer.weight holds 1 NaN"),
    "one Inf": (changed("layer.weight", by=with_value(math.inf)), "layer.weight holds 1 Inf"),
    "all Inf": (changed("layer.weight", "scale", by=lambda t: t * 0 - math.inf),
                "layer.weight holds 64 Inf"),
    "NaN in bfloat16": (changed("half.weight", by=with_value(math.nan)), "half.weight holds 1 NaN"),
    "NaN in statistics": (changed("bn.running_var", by=with_value(math.nan)), "running_var holds 1 NaN"),
    "a million times": (changed("layer.weight", by=lambda t: t * 1e6), FAR),
    "near the largest float": (changed("layer.weight", by=lambda t: t * 0 + 3e38), FAR),
    "another shape": (changed("layer.weight", by=lambda t: torch.ones(8, 9)),
                      r"is \[8, 9\], the server's \[8, 8\]"),
    "what would broadcast": (changed("layer.bias", by=lambda t: t[:1]),
                             r"layer.bias is \[1\], the server's \[8\]"),
    "a scalar": (changed("layer.bias", by=lambda t: t[0]), r"layer.bias is \[\], the server's \[8\]"),
    "a missing tensor": (without("layer.bias"), r"1 tensor \(layer.bias\) missing"),
    "a missing counter": (without("bn.num_batches_tracked"), r"tracked\) missing"),
    "a further tensor": (lambda _: trained(SERVER, 99) | {"head": torch.ones(2)},
                         r"1 tensor \(head\) that the server does not have"),
    "float16": (changed("layer.weight", by=Tensor.half), "is float16, the server's float32"),
    "complex64": (changed("layer.weight", by=lambda t: t.to(torch.complex64)), "is complex64"),
    "integers for floats": (changed("layer.weight", by=Tensor.long), "is int64"),
    "floats for a counter": (changed("bn.num_batches_tracked", by=Tensor.float),
                             "is float32, the server's int64"),
    "other integers": (changed("table", by=lambda t: t + 1),
                       "table differs from the server's, and integers are never averaged"),
    "text for a tensor": (changed("table", by=str), "it is a str, not a tensor"),
    "no tensors": (lambda _: {}, "holds no tensors"),
    "nothing": (lambda _: None, "A NoneType is not a checkpoint"),
    "a number": (lambda _: 3.5, "A float is not a checkpoint"),
    "a missing file": (lambda folder: folder / "gone.pt", "There is no file"),
    "garbage": (lambda folder: archive(folder, lambda raw: b"PK" + b"\x07" * 500), "npz"),
    "a truncated file": (lambda folder: archive(folder, lambda raw: raw[:-300]), "npz"),
    "an empty file": (lambda folder: archive(folder, lambda raw: b""), "npz"),
    "pickled objects": (pickled, "w"),
    "14.6 TiB, says the header": (huge_header, "huge.npz"),
}  # fmt: skip
"""What a client may send for a model, and the reason in the record."""

NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": ({"num_examples": 0}, "says that it has 0 examples"),
    "negative examples": ({"num_examples": -50}, "has -50 examples"),
    "NaN examples": ({"num_examples": math.nan}, "has nan examples"),
    "infinite examples": ({"num_examples": math.inf}, "has inf examples"),
    "more than floats hold": ({"num_examples": 10**400}, "has 1000000"),
    "more than Python prints": ({"num_examples": 10**5000}, "has a number of thousands of digits"),
    "as many as overflow": ({"num_examples": 1e308}, r"has 1e\+308"),
    "less than a float": ({"num_examples": 5e-324}, "has 5e-324"),
    "examples in words": ({"num_examples": "many"}, "has 'many' examples"),
    "true examples": ({"num_examples": True}, "has True examples"),
    "a loss of NaN": ({"loss": math.nan}, "its loss of the server's model on its data is nan"),
    "a negative loss": ({"loss": -1.0}, r"data is -1\.0"),
    "a loss beyond powers": ({"loss": 1e300}, r"data is 1e\+300"),
    "negative steps": ({"steps": -3}, "number of local steps is -3"),
    "steps that divide to infinity": ({"steps": 1e-320}, "number of local steps is 1e-320"),
    "a round to come": ({"round": 7}, "it is of round 7, and this is round 1"),
    "round zero": ({"round": 0}, "it is of round 0"),
    "half a round": ({"round": 0.5}, "it is of round 0.5"),
    "a control of NaN": ({"control": {"scale": torch.tensor(math.nan)}}, "control variate's scale holds NaN"),
    "a control of another shape": ({"control": {"scale": torch.ones(3)}}, r"control variate's scale is \[3\]"),
    "a control of no tensor": ({"control": {"zzz": torch.ones(3)}}, "control variate has zzz"),
    "a control of arrays": ({"control": {"scale": np.float32(1)}}, "is no tensor"),
}  # fmt: skip
"""What a client may claim."""

alone = {name: aggregate_updates(SERVER, SENT, built(name)) for name in EVERY}


def bad_ones(folder: Path, rows: Collection[str]) -> list[Update]:
    """One client for each of these rows."""
    found = []
    for row in rows:
        numbers = NUMBERS[row][0] if row in NUMBERS else {}
        made = MODELS[row][0](folder) if row in MODELS else trained(SERVER, 99)
        found.append(update(f"a {row}", made, **numbers))
    return found


def check(found: Aggregated, wanted: Aggregated, reasons: Mapping[str, str]) -> None:
    """The bad ones are left out, each with its reason; the rest is as if they were not there."""
    left = {each.client: each.reason for each in found.record.left_out}
    assert set(left) == {f"a {row}" for row in reasons}
    for row, reason in reasons.items():
        assert re.search(reason, left[f"a {row}"]), left[f"a {row}"]
    assert [c.client for c in found.record.counted] == [each.client for each in SENT]
    assert all(bool(t.isfinite().all()) for t in found.tensors.values())
    assert same_bits(found.tensors, wanted.tensors)


def reasons_of(rows: Collection[str], whose: str = "the server") -> dict[str, str]:
    every = {row: reason for row, (_, reason) in (MODELS | NUMBERS).items() if row in rows}
    return {row: reason.replace("the server", whose) for row, reason in every.items()}


@pytest.mark.parametrize("row", [*MODELS, *NUMBERS])
@pytest.mark.parametrize("name", ["fedavg", "fedadam", "krum", "median"])
def test_one_bad_client_changes_nothing_for_the_others(name: str, row: str, tmp_path: Path) -> None:
    sent = [*bad_ones(tmp_path, [row]), *SENT]
    check(aggregate_updates(SERVER, sent, built(name)), alone[name], reasons_of([row]))


@pytest.mark.parametrize("rows", [MODELS, NUMBERS], ids=["models", "numbers"])
@pytest.mark.parametrize("name", EVERY)
def test_nor_do_all_bad_ones_at_once(name: str, rows: Collection[str], tmp_path: Path) -> None:
    if built(name).private:
        # Clipping is what those that are far off meet: no client decides about another.
        rows = [row for row in rows if reasons_of([row])[row] != FAR]
    for sent in ([*bad_ones(tmp_path, rows), *SENT], [*SENT, *bad_ones(tmp_path, rows)]):
        check(aggregate_updates(SERVER, sent, built(name)), alone[name], reasons_of(rows))


@pytest.mark.parametrize("name", EVERY)
def test_nor_where_sums_take_each_as_it_comes(name: str, tmp_path: Path) -> None:
    rows = [row for row in (*MODELS, *NUMBERS) if reasons_of([row])[row] != FAR]
    wanted = aggregate_updates(SERVER, iter(SENT), built(name), checks=STREAMING)
    sent = iter([*bad_ones(tmp_path, rows), *SENT])
    found = aggregate_updates(SERVER, sent, built(name), checks=STREAMING)
    check(found, wanted, reasons_of(rows))


@pytest.mark.parametrize("name", ["fedavg", "krum", "median", "trimmed_mean", "rfa", "multi_krum"])
def test_nor_without_a_server(name: str, tmp_path: Path) -> None:
    rows = [row for row in MODELS if reasons_of([row])[row] != FAR]
    wanted = aggregate_updates(None, SENT, built(name))
    for sent in ([*bad_ones(tmp_path, rows), *SENT], [*SENT, *bad_ones(tmp_path, rows)]):
        check(
            aggregate_updates(None, sent, built(name)), wanted, reasons_of(rows, "the usual model")
        )


@pytest.mark.parametrize("row", [*MODELS, *NUMBERS])
def test_where_the_policy_says_so_it_ends_the_round_and_says_who(row: str, tmp_path: Path) -> None:
    sent = [*SENT, *bad_ones(tmp_path, [row])]
    words = re.escape(f"Round 1 ended, because the update of a {row} cannot be used: ")
    with pytest.raises(DataError, match=words):
        aggregate_updates(SERVER, sent, built("fedavg"), checks=Checks(on_bad="error"))


@pytest.mark.parametrize("name", EVERY)
def test_only_the_first_of_five_replies_counts(name: str) -> None:
    extra = update("a bad one", trained(SERVER, 99))
    once = aggregate_updates(SERVER, [extra, *SENT], built(name))
    found = aggregate_updates(SERVER, [extra, *SENT, extra, extra, extra, extra], built(name))
    assert [each.reason for each in found.record.left_out] == ["it sent a second update in this round"] * 4  # fmt: skip
    assert same_bits(found.tensors, once.tensors)


@pytest.mark.parametrize("name", EVERY)
def test_an_absurd_claim_counts_nowhere(name: str) -> None:
    sent = [update("a bad one", trained(SERVER, 99), num_examples=1e15), *SENT]
    found = aggregate_updates(SERVER, sent, built(name))
    if "num_examples" in built(name).asks:
        check(found, alone[name], {"bad one": "has 1e.15 examples, over 1000 times the median"})
    else:
        fair = [update("a bad one", trained(SERVER, 99)), *SENT]
        assert same_bits(found.tensors, aggregate_updates(SERVER, fair, built(name)).tensors)


@pytest.mark.parametrize("name", EVERY)
def test_the_one_that_says_its_examples_is_not_all_that_counts(name: str) -> None:
    silent = [update(each.client, each.model, num_examples=None) for each in SENT]
    wanted = aggregate_updates(SERVER, silent, built(name))
    for checks, turn in ((None, list), (STREAMING, iter)):
        sent = turn([update("a bad one", trained(SERVER, 99, 0.3)), *silent])
        found = aggregate_updates(SERVER, sent, built(name), checks=checks)
        if "num_examples" not in built(name).asks:
            assert len(found.record.counted) == len(SENT) + 1
            continue
        assert [c.client for c in found.record.counted] == [each.client for each in SENT]
        assert "most clients give none" in found.record.left_out[0].reason
        torch.testing.assert_close(found.tensors, wanted.tensors)


@pytest.mark.parametrize("name", [n for n in EVERY if "num_examples" in built(n).asks])
def test_the_silent_one_does_not_count_as_one_example(name: str) -> None:
    for checks, turn in ((None, list), (STREAMING, iter)):
        wanted = aggregate_updates(SERVER, turn(SENT), built(name), checks=checks)
        sent = turn([update("a bad one", trained(SERVER, 99), num_examples=None), *SENT])
        found = aggregate_updates(SERVER, sent, built(name), checks=checks)
        check(found, wanted, {"bad one": "it gives no number of examples"})


@pytest.mark.parametrize("name", EVERY)
def test_what_all_have_wrong_keeps_the_old_model(name: str) -> None:
    wrong = [update(e.client, {**e.model, "layer.weight": torch.ones(8, 9)}) for e in SENT]
    for sent in (wrong, []):
        found = aggregate_updates(SERVER, sent, built(name))
        assert found.record.kept_server == "0 updates of at least 1 can be used"
        assert len(found.record.left_out) == len(sent)
        assert same_bits(found.tensors, SERVER)


@pytest.mark.parametrize("name", EVERY)
def test_a_client_that_did_not_move_is_no_special_case(name: str) -> None:
    found = aggregate_updates(SERVER, [update("still", SERVER), *SENT], built(name))
    assert not found.record.left_out
    assert all(bool(t.isfinite().all()) for t in found.tensors.values())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("count", [1, 2])
def test_few_replies_count_or_are_refused_with_the_numbers(name: str, count: int) -> None:
    if name in ("krum", "multi_krum", "bulyan"):
        with pytest.raises(InvalidParameter, match=f"needs at least .* and {count} count"):
            aggregate_updates(SERVER, SENT[:count], built(name))
        return
    found = aggregate_updates(SERVER, SENT[:count], built(name))
    assert len(found.record.counted) == count
    assert all(bool(t.isfinite().all()) for t in found.tensors.values())
    quorum = aggregate_updates(SERVER, SENT[:count], built(name), checks=Checks(min_clients=3))
    assert quorum.record.kept_server == f"{count} update{'s' if count > 1 else ''} of at least 3 can be used"  # fmt: skip
    assert same_bits(quorum.tensors, SERVER)
    assert quorum.record.counted == ()


@pytest.mark.parametrize("name", EVERY)
def test_a_server_that_is_broken_is_an_error_and_no_client_is_blamed(name: str) -> None:
    broken = SERVER | {"layer.weight": with_value(math.nan)(SERVER["layer.weight"])}
    with pytest.raises(CheckpointError, match="the server's model holds NaN"):
        aggregate_updates(broken, SENT, built(name))


ATTACKS: dict[str, Callable[[int], State]] = {
    "sign-flipped, ten times": lambda i: {
        n: t if n not in ("layer.weight", "layer.bias") else SERVER[n] - 10 * (t - SERVER[n])
        for n, t in trained(SERVER, 99 + i).items()
    },
    "colluding": lambda i: trained(SERVER, 99, 0.05),
    "noise": lambda i: trained(SERVER, 99 + i, 0.5),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    "name",
    ["median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "bulyan", "rfa",
     "centred_clipping"],
)  # fmt: skip
def test_robust_aggregators_stay_with_the_honest(name: str, attack: str) -> None:
    sent = [*SENT, *(update(f"a bad one {i}", ATTACKS[attack](i)) for i in range(2))]
    found = aggregate_updates(SERVER, sent, built(name))
    every = torch.stack([each.model["layer.weight"] for each in SENT])
    assert (found.tensors["layer.weight"] - every.mean(0)).abs().max() < 4 * SPREAD
    plain = aggregate_updates(SERVER, sent, built("fedavg"))
    error = {n: (f.tensors["layer.weight"] - every.mean(0)).norm() for n, f in (("robust", found), ("plain", plain))}  # fmt: skip
    if attack != "colluding" and name != "krum":
        assert error["robust"] < error["plain"]


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan", "rfa", "centred_clipping"])
def test_absurd_clients_do_not_cost_the_honest_their_digits(name: str) -> None:
    """Without limits of norms too: distances between the honest are what they were."""
    far = [update(f"a bad one {i}", {**trained(SERVER, i), "layer.weight": torch.full((8, 8), 3e38)})
           for i in range(2)]  # fmt: skip
    near = [update(e.client, trained(SERVER, 90 + i, 0.1)) for i, e in enumerate(far)]
    unlimited = Checks(norm_ratio=None)
    found = aggregate_updates(SERVER, [*far, *SENT], built(name), checks=unlimited)
    close = aggregate_updates(SERVER, [*near, *SENT], built(name), checks=unlimited)
    assert len(found.record.counted) == len(SENT) + 2
    if name == "krum":
        assert [c.coefficient for c in found.record.counted] == [c.coefficient for c in close.record.counted]  # fmt: skip
    every = torch.stack([each.model["layer.weight"] for each in SENT])
    assert (found.tensors["layer.weight"] - every.mean(0)).abs().max() < 4 * SPREAD


def test_reasons_name_three_and_count_the_others() -> None:
    many = {f"layer{i}": torch.ones(2) for i in range(9)}
    found = aggregate_updates(many, [Update("a", {"layer0": torch.ones(3)})], built("fedavg"))
    (left,) = found.record.left_out
    assert left.reason == (
        "8 tensors (layer1, layer2, layer3, …) missing; layer0 is [3], the server's [2]"
    )


@pytest.mark.parametrize("sent", [{"a": 3}, [3], "updates"])
def test_what_is_no_list_of_models_is_one_of_our_errors(sent: Any) -> None:
    import alloykit

    with pytest.raises(AlloyError):
        alloykit.aggregate(None, sent)
