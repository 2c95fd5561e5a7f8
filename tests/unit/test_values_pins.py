"""Pins in values files: comments are added and replaced, everything else stays byte for byte (I1)."""

from __future__ import annotations

import random

import pytest

from staging.values.deployment import Deployment, read_deployment
from staging.values.document import lines_of, read_values
from staging.values.pins import pin_patch, with_pins
from staging.vocabulary.errors import UsageError

A, B, C = (f"sha256:{digit * 64}" for digit in "abc")
NOTE = "# checkpoint id: "


def read(text: str) -> Deployment:
    return read_deployment(read_values(text.encode(), "v.yaml"), lines_of(text), "v.yaml")


def pinned(text: str, **ids: str) -> str:
    return with_pins(text, read(text), ids, "v.yaml")


def pins(text: str) -> dict[str, str | None]:
    return {model.key: model.pin for model in read(text).models}


def test_a_pin_stands_above_the_uri_with_its_indentation() -> None:
    text = "# mine\nmodels:\n    a:   # the large one\n      gpus: 1\n      model:  s3://bucket/a  # ours\n"
    assert pinned(text, a=A) == text.replace("      model:", f"      {NOTE}{A}\n      model:")


def test_the_same_again_changes_nothing() -> None:
    once = pinned(
        "models:\n  a:\n    model: s3://bucket/a\n  b:\n    model: s3://bucket/b\n", a=A, b=B
    )
    assert pinned(once, a=A, b=B) == once
    assert pins(once) == {"a": A, "b": B}


def test_another_id_replaces_the_old_one_in_its_line() -> None:
    text = f"models:\n  a:\n    {NOTE}{A}  \n    # checked by Kim\n    model: s3://bucket/a\n"
    assert pinned(text, a=B) == text.replace(A, B)


def test_only_the_comment_of_the_model_itself_is_a_pin() -> None:
    text = f"models:\n  a:\n    {NOTE}{A}\n    gpus: 1\n    model: s3://bucket/a\n"
    assert pins(text) == {"a": None}
    assert pins(pinned(text, a=B)) == {"a": B}
    assert A in pinned(text, a=B)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_stay(ending: str) -> None:
    text = ending.join(["models:", "  a:", "    model: s3://bucket/a", "    gpus: 1", ""])
    assert pinned(text, a=A) == text.replace("    model", f"    {NOTE}{A}{ending}    model")


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  a:\n    model: s3://bucket/a",  # no line end at the end
        "\ufeffmodels:\n  a:\n    model: s3://bucket/a\n",
        "models:\n  a: {gpus: 1, model: s3://bucket/a}\n",
        "models: {a: {model: s3://bucket/a}}\n",
        "models:\n  a: {\n    gpus: 1,\n    model: s3://bucket/a }\n",
        'models:\n  a:\n    "model": >-\n      s3://bucket/a\n',
        "models:\n  a:\n    note: |\n      text\n    model: s3://bucket/a\n",
        "base: &base\n  model: s3://bucket/a\nmodels:\n  a:\n    <<: *base\n    gpus: 1\n",
        "models:\n  a:\n    ? model\n    : s3://bucket/a\n",
    ],
)
def test_all_ways_to_write_a_model(text: str) -> None:
    after = pinned(text, a=A)
    assert pins(after) == {"a": A}
    assert pinned(after, a=A) == after
    kept = [line for line in lines_of(after) if NOTE not in line]
    assert "".join(kept) == text or after.endswith(text)


@pytest.mark.parametrize(
    "text",
    [
        "models: {a: {model: s3://bucket/a}, b: {model: s3://bucket/b}}\n",
        "x: &x\n  model: s3://bucket/x\nmodels:\n  a: *x\n  b: *x\n",
    ],
)
def test_two_ids_have_no_place_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        pinned(text, a=A, b=B)
    assert refused.value.reference == "pin-place"
    assert pins(pinned(text, a=A, b=A)) == {"a": A, "b": A}


def test_a_comment_that_would_become_text_is_refused() -> None:
    text = 'models:\n  a: {note: "x\n    y", model: s3://bucket/a}\n'
    with pytest.raises(UsageError) as refused:
        with_pins(text, read(text), {"a": A}, "v.yaml")
    assert refused.value.reference == "pin-place"


def test_models_without_an_id_are_left_alone() -> None:
    text = "models:\n  a:\n    model: s3://bucket/a\n  b:\n    gpus: 1\n"
    assert pins(pinned(text, b=B)) == {"a": None, "b": None}
    assert pinned(text) == text


def test_random_files_keep_every_other_line() -> None:
    rng = random.Random(7)
    for _ in range(150):
        ending = rng.choice(["\n", "\r\n"])
        lines, ids = ["models:"], {}
        for number in range(rng.randrange(1, 6)):
            key, indent = f"m{number}", " " * rng.randrange(3, 7)
            ids[key] = f"sha256:{rng.randbytes(32).hex()}"
            fields = [
                f"{indent}model: s3://bucket/{key}",
                f"{indent}gpus: {rng.choice([1, 2])}",
                *rng.sample(
                    ["", "# comment", f"{indent}# more", f"{indent}# checkpoint id: soon"], 2
                ),
            ]
            rng.shuffle(fields)
            lines += [f"  {key}:", *fields]
        text = ending.join([*lines, ""])
        after = pinned(text, **ids)
        assert pins(after) == ids
        added = [line for line in lines_of(after) if any(one in line for one in ids.values())]
        assert len(added) == len(ids)
        assert "".join(line for line in lines_of(after) if line not in added) == text


def test_a_patch_names_the_variable_and_nothing_else() -> None:
    assert pin_patch("inference-a", A) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "inference-a"},
        "spec": {
            "template": {
                "spec": {
                    "initContainers": [
                        {
                            "name": "model-downloader",
                            "env": [{"name": "MODEL_EXPECT_ID", "value": A}],
                        }
                    ]
                }
            }
        },
    }
