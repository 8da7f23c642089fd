"""Label expressions: what they mean, and where exactly a bad one is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobschedd.errors import InvalidJob
from jobschedd.job import Target
from jobschedd.labels import matches, normal
from jobschedd.submission import submission

NAMES = ["gpu", "spot", "a100", "x-1.y_z"]
TREES = st.recursive(
    st.sampled_from(NAMES),
    lambda one: st.one_of(one.map(lambda tree: ("!", tree)), st.tuples(st.sampled_from(["&&", "||"]), one, one)),
    max_leaves=8,
)


def text_of(tree) -> str:
    """With every parenthesis that could be there."""
    if isinstance(tree, str):
        return tree
    if tree[0] == "!":
        return f"!({text_of(tree[1])})"
    return f"({text_of(tree[1])}) {tree[0]}({text_of(tree[2])} )"


def meant(tree, labels) -> bool:
    if isinstance(tree, str):
        return tree in labels
    if tree[0] == "!":
        return not meant(tree[1], labels)
    both = (meant(tree[1], labels), meant(tree[2], labels))
    return all(both) if tree[0] == "&&" else any(both)


@given(tree=TREES, labels=st.frozensets(st.sampled_from(NAMES)))
def test_it_means_what_it_says(tree, labels):
    assert matches(text_of(tree), labels) == meant(tree, labels)


@given(tree=TREES, labels=st.frozensets(st.sampled_from(NAMES)))
def test_the_one_spelling_means_the_same_and_stays(tree, labels):
    text = normal(text_of(tree))
    assert matches(text, labels) == meant(tree, labels)
    assert normal(text) == text


@given(tree=TREES)
def test_in_a_class_it_survives_as_text(tree):
    target = submission({"command": ["true"], "labels": [text_of(tree), "plain"]}).target
    assert Target.from_key(target.key()) == target


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("gpu", "gpu"),
        (" gpu ", "gpu"),
        ("gpu&&!spot", "gpu && !spot"),
        ("a||b&&c", "a || b && c"),
        ("(a||b)&&c", "(a || b) && c"),
        ("((a))", "a"),
        ("!!a", "!!a"),
        ("!(a||b)", "!(a || b)"),
        ("a && (b && c)", "a && (b && c)"),
    ],
)
def test_one_spelling(text, spelled):
    assert normal(text) == spelled


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "position 1: expected a label"),
        ("gpu &&", "position 7: expected a label"),
        ("gpu spot", "position 5: expected && or ||"),
        ("gpu & spot", "position 5: '&' is no part of a label; write && and ||"),
        ("gpu, spot", "position 4: ',' is no part of a label; write && and ||"),
        ("(gpu", "position 5: the parenthesis of position 1 is not closed"),
        ("gpu)", "position 4: expected && or ||"),
        ("!", "position 2: expected a label"),
        ("-gpu", "position 1: '-' is no part of a label"),
        ("a" * 65, "at most 64"),
        ("!" * 30 + "a", "nested deeper"),
        ("a||" * 200 + "a", "characters long"),
    ],
)
def test_a_bad_one_is_refused_where_it_is_wrong(text, says):
    with pytest.raises(ValueError) as error:
        normal(text)
    assert says in str(error.value)
    with pytest.raises(InvalidJob) as refused:
        submission({"command": ["true"], "labels": [text]})
    assert refused.value.field == "labels" and says in str(refused.value)


def test_several_must_all_hold():
    target = submission({"command": ["true"], "labels": ["gpu || tpu", "!spot"]}).target
    assert target.admits("n", "c", frozenset({"tpu"}))
    assert not target.admits("n", "c", frozenset({"tpu", "spot"}))
