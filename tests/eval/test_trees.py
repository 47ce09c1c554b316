"""Token trees: what shares what, and that nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from vlora.data import Encoding
from vlora.eval.trees import TreeBatch, plan_groups


def _item(prompt: list[int], *choices: list[int]) -> list[Encoding]:
    return [Encoding([*prompt, *choice], len(prompt)) for choice in choices]


def test_choices_branch_where_their_tokens_part():
    [group] = plan_groups([_item([1, 2, 3], [4, 5, 6], [4, 7], [8])])
    [tree] = group.trees
    assert group.prefix == []
    assert tree.tokens == [1, 2, 3, 4, 5]  # 6, 7 and 8 are predicted and never fed in
    assert tree.parents == [-1, 0, 1, 2, 3] and tree.depth == [0, 1, 2, 3, 4]
    assert list(zip(tree.nodes, tree.targets, strict=True)) == [
        (2, 4),
        (3, 5),
        (4, 6),
        (2, 4),
        (3, 7),
        (2, 8),
    ]
    [group] = plan_groups([_item([1, 2], [4, 5, 6], [7, 8])])
    assert group.trees[0].tokens == [1, 2, 4, 5, 7] and group.trees[0].depth == [0, 1, 2, 3, 2]
    batch = TreeBatch.of(group.trees, 0)
    assert batch.mask is not None
    assert batch.mask[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_long_common_beginnings_become_prefixes():
    shots, other = list(range(100, 160)), list(range(200, 260))
    items = [
        _item([*shots, 1, 2], [3], [4]),
        _item([*other, 1, 2], [3], [4]),
        _item([*shots, 5, 6], [3], [4]),
        _item([*other, 7], [3], [4]),
        _item([9, 9], [3], [4]),
    ]
    groups = plan_groups(items)
    assert [(group.prefix, sorted(tree.item for tree in group.trees)) for group in groups] == [
        (shots, [0, 2]),
        ([*other], [1, 3]),
        ([], [4]),
    ]


def test_the_token_before_the_first_scored_one_stays_with_the_item():
    prompt = list(range(50))
    [group] = plan_groups([_item(prompt, [1, 2]), _item(prompt, [3])])
    assert group.prefix == prompt[:-1]
    assert [tree.tokens for tree in group.trees] == [[49, 1], [49]]


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(
    st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=6),
    st.integers(0, 60),
)
def test_every_scored_token_sees_exactly_its_own_string(items, shots):
    encoded = [_item([7] * shots + prompt, *choices) for prompt, choices in items]
    groups = plan_groups(encoded)
    assert sorted(tree.item for group in groups for tree in group.trees) == list(range(len(items)))
    for group in groups:
        for tree in group.trees:
            expected = [
                (choice.input_ids[:at], choice.input_ids[at])
                for choice in encoded[tree.item]
                for at in range(choice.prompt_length, len(choice.input_ids))
            ]
            found = []
            for node, target in zip(tree.nodes, tree.targets, strict=True):
                path = []
                while node >= 0:
                    assert tree.depth[node] == len(group.prefix) + _steps(tree, node)
                    path.insert(0, tree.tokens[node])
                    node = tree.parents[node]
                found.append(([*group.prefix, *path], target))
            assert found == expected


def _steps(tree, node: int) -> int:
    return 0 if tree.parents[node] < 0 else 1 + _steps(tree, tree.parents[node])
