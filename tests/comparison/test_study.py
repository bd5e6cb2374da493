"""Study files: every mistake at once, hostile YAML refused, files and code found."""

from __future__ import annotations

from pathlib import Path

import pytest

from alloykit.comparison.preparing import prepare
from alloykit.comparison.study import check_study, read_study, study_schema
from alloykit.errors import InvalidStudy
from study_files import write_study

GOOD = {
    "architecture": "nets:small",
    "members": [{"checkpoint": "a.safetensors"}, {"checkpoint": "b.safetensors"}],
    "data": {"validation": {"npz": "v.npz"}, "test": {"npz": "t.npz"}},
}


def test_a_good_study_has_its_defaults() -> None:
    study = check_study(GOOD)
    assert (study.task, study.seed, study.ordered, study.on_overlap) == (
        "classification", 0, False, "error",
    )  # fmt: skip


def test_every_mistake_is_listed_with_the_nearest_key() -> None:
    wrong = {
        **GOOD,
        "metrik": "accuracy",
        "task": "clasification",
        "seed": -3,
        "members": [{"checkpoint": 3, "architectur": "x:y"}],
        "data": {"validation": {"npz": "v.npz", "row": "0:5"}},
    }
    with pytest.raises(InvalidStudy) as said:
        check_study(wrong)
    text = str(said.value)
    for part in (
        "metrik: there is no such key. Did you mean 'metric'?",
        "members.0.architectur: there is no such key. Did you mean 'architecture'?",
        "data.validation.row: there is no such key. Did you mean 'rows'?",
        "data.test: is missing",
        "task:",
        "seed:",
        "members.0.checkpoint:",
    ):
        assert part in text, text
    assert "has 7 mistakes" in text


def test_members_need_an_architecture_and_a_file() -> None:
    with pytest.raises(InvalidStudy, match=r"members\.1: no architecture"):
        check_study({**GOOD, "architecture": None,
                     "members": [{"checkpoint": "a", "architecture": "x:y"}, {"checkpoint": "b"}]})  # fmt: skip
    with pytest.raises(InvalidStudy, match=r"members\.0: no checkpoint"):
        check_study({**GOOD, "members": [{"name": "a"}, {"checkpoint": "b"}]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("members: [", "not a readable YAML"),
        ("- a\n- b\n", "mapping"),
        ("", "mapping"),
        ("seed: 1\nseed: 2\n", "'seed' is there twice"),
        ("a: !!python/object/apply:os.system [echo]\n", "not a readable YAML"),
        ("a: 1\n---\nb: 2\n", "not a readable YAML"),
        ("\tmembers: 1\n", "not a readable YAML"),
        ("members: &a [*a]\n", "holds itself"),
        ("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
         + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
         "unfolds to over"),
        ("\udcff", "not a readable YAML"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidStudy, match=said):
        read_study(path)


def test_paths_are_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(tmp_path)
    monkeypatch.chdir("/")
    setting = prepare(read_study(study), study.parent)
    assert [member.name for member in setting.members] == ["tune1", "tune2", "tune3"]
    assert (len(setting.validation), len(setting.test)) == (200, 300)


def test_an_exported_program_is_an_architecture(tmp_path: Path) -> None:
    import torch

    import alloykit
    from study_files import blobs, small_net

    study_path = write_study(tmp_path)
    whole = alloykit.ensemble([small_net().eval(), small_net().eval()])
    alloykit.save_exported(whole, tmp_path / "both.pt2", torch.tensor(blobs(4, 0)[0]))
    members = [{"checkpoint": "tune1.safetensors"}, {"architecture": "both.pt2"}]
    study = read_study(study_path).model_copy(
        update={"members": check_study({**GOOD, "members": members}).members}
    )
    setting = prepare(study, tmp_path)
    assert [member.name for member in setting.members] == ["tune1", "both"]
    given = torch.tensor(blobs(7, 1)[0])
    torch.testing.assert_close(setting.members[1].module(given), whole(given))


def test_schema_describes_every_key() -> None:
    schema = study_schema()
    described = [k for k, v in schema["properties"].items() if "description" in v or "$ref" in v]
    assert set(schema["properties"]) - set(described) <= {"data"}


def test_every_key_of_a_study_reaches_the_comparison(tmp_path: Path) -> None:
    from alloykit.checkpoints.digests import content_digest
    from alloykit.checkpoints.opening import open_checkpoint

    study = write_study(
        tmp_path, metric="log_loss", base="tune3.safetensors", ordered=True, seed=7, title="T",
        data={"validation": {"npz": "validation.npz"}, "test": {"npz": "test.npz"},
              "train": {"npz": "validation.npz", "rows": "0:50"}},
    )  # fmt: skip
    setting = prepare(read_study(study), tmp_path)
    assert (setting.metric.name, setting.ordered, setting.seed) == ("log_loss", True, 7)
    assert (setting.title, setting.resamples) == ("T", 100)
    assert setting.batch_norm is not None
    assert (setting.batch_norm.name, len(setting.batch_norm)) == ("train", 50)
    assert setting.base is not None
    given = content_digest(open_checkpoint(tmp_path / "tune3.safetensors"))
    assert content_digest(setting.base) == given
