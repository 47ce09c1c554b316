r"""Token trees: an item's prompt and all its choices as one row, behind a prefix that many items share.

An item is a tree of tokens. Its trunk is the prompt; choices branch off where their tokens part, and tokens that
choices have in common are there once. The last token of a choice is never fed in, so one-token choices need no branch.
A token sees the prefix, its ancestors and itself (tree attention), and its position is its depth: under a causal model
every token is computed exactly as in a row of its own. Tokens per item: ``T_q + sum_c (T_c - 1)`` instead of
``C (T_pre + T_q + T_c)``.

What many prompts begin with (instructions, few-shot examples) is run once as a group's prefix and kept as a key/value
cache. Groups are chosen by the number of tokens that they save.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlora.data import Encoding

__all__ = ["Group", "Tree", "TreeBatch", "Trees", "lone_trees", "plan_groups"]

_CALL = 32  # tokens that one more forward pass is worth


@dataclass
class Tree:
    """Tokens of one item behind its group's prefix.

    Attributes:
        item: Number of the item.
        tokens: Token of every node, parents before children.
        parents: Number of every node's parent, -1 for the first.
        depth: Position of every node in its string, the prefix counted.
        nodes: Node that each scored token is predicted from, choice after choice.
        targets: The scored tokens.
    """

    item: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    @property
    def is_chain(self) -> bool:
        """Whether nothing branches."""
        return self.parents == list(range(-1, len(self.tokens) - 1))


@dataclass(frozen=True)
class TreeBatch:
    """Trees of one group, padded to one length.

    Attributes:
        items: Number of each row's item.
        inputs: ``input_ids`` and ``position_ids`` [B, Q].
        mask: Who sees whom behind the prefix, bool [B, Q, Q]; None where nothing branches.
        lengths: Nodes of each row, int64 [B].
        rows, nodes: Places of the scored tokens, int64 [M], each place once.
        place: Place that each scored token is predicted from, int64.
        targets: The scored tokens, item after item, choice after choice.
        counts: Scored tokens of each row.
    """

    items: list[int]
    inputs: dict[str, Tensor]
    mask: Tensor | None
    lengths: Tensor
    rows: Tensor
    nodes: Tensor
    place: Tensor
    targets: Tensor
    counts: list[int]

    @classmethod
    def of(cls, trees: Sequence[Tree], pad_id: int) -> "TreeBatch":
        """Pad trees to one length."""
        size = max(len(tree.tokens) for tree in trees)
        ids, positions = (
            torch.full((len(trees), size), pad_id),
            torch.zeros(len(trees), size, dtype=torch.long),
        )
        for row, tree in enumerate(trees):
            ids[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
            positions[row, : len(tree.tokens)] = torch.tensor(tree.depth)
        keys = [row * size + node for row, tree in enumerate(trees) for node in tree.nodes]
        places, place = torch.tensor(keys).unique(return_inverse=True)
        return cls(
            items=[tree.item for tree in trees],
            inputs={"input_ids": ids, "position_ids": positions},
            mask=None
            if all(tree.is_chain for tree in trees)
            else torch.stack([_sees(t, size) for t in trees]),
            lengths=torch.tensor([len(tree.tokens) for tree in trees]),
            rows=places // size,
            nodes=places % size,
            place=place,
            targets=torch.tensor([target for tree in trees for target in tree.targets]),
            counts=[len(tree.nodes) for tree in trees],
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the batch, padding included."""
        return self.inputs["input_ids"].numel()


@dataclass(frozen=True)
class Trees:
    """Trees of one group that run together."""

    trees: list[Tree]

    def __len__(self) -> int:
        """Number of trees."""
        return len(self.trees)

    def halves(self) -> "list[Trees]":
        """Two halves, for a second try in less memory."""
        middle = (len(self.trees) + 1) // 2
        return [Trees(self.trees[:middle]), Trees(self.trees[middle:])]

    @property
    def items(self) -> list[int]:
        """Numbers of the items."""
        return [tree.item for tree in self.trees]


@dataclass
class Group:
    """Items behind one prefix.

    Attributes:
        prefix: Tokens that all of them begin with; empty for none.
        trees: What follows, longest first.
    """

    prefix: list[int]
    trees: list[Tree]

    def batches(self, *, max_tokens: int, max_rows: int, max_places: int) -> "list[Trees]":
        """Cut into batches; a single larger tree still makes one."""
        batches: list[list[Tree]] = []
        places = 0
        for tree in self.trees:
            fits = batches and (
                len(batches[-1]) < max_rows
                and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= max_tokens
                and places + len(tree.nodes) <= max_places
            )
            if not fits:
                batches.append([])
                places = 0
            batches[-1].append(tree)
            places += len(tree.nodes)
        return [Trees(batch) for batch in batches]


def plan_groups(items: Sequence[Sequence[Encoding]]) -> list[Group]:
    """Group items by what their prompts begin with, and lay out their trees.

    Args:
        items: For every item its choices, each a prompt with a continuation; a text is an item with one choice.
    """
    heads = [_head(choices) for choices in items]
    order = sorted(range(len(items)), key=lambda item: heads[item])
    groups = []
    for depth, members in _split(heads, order, 0)[1]:
        trees = [_tree(item, items[item], depth) for item in members]
        trees.sort(key=lambda tree: (-len(tree.tokens), tree.item))
        groups.append(Group(heads[members[0]][:depth], trees))
    return sorted(groups, key=lambda group: min(tree.item for tree in group.trees))


def lone_trees(items: Sequence[Sequence[Encoding]]) -> Group:
    """Items as trees with their whole prompt, behind no prefix.

    Args:
        items: For every item its choices.
    """
    trees = [_tree(item, choices, 0) for item, choices in enumerate(items)]
    return Group([], sorted(trees, key=lambda tree: (-len(tree.tokens), tree.item)))


def _head(choices: Sequence[Encoding]) -> list[int]:
    """Tokens that all choices begin with, up to the one that the first scored token is predicted from."""
    first = choices[0].input_ids
    size = min(max(choice.prompt_length, 1) for choice in choices) - 1
    while any(choice.input_ids[:size] != first[:size] for choice in choices):
        size -= 1
    return first[:size]


def _split(
    heads: Sequence[list[int]], order: list[int], given: int
) -> tuple[int, list[tuple[int, list[int]]]]:
    """Cheapest way to give items (sorted by their heads, ``given`` tokens in common) prefixes.

    Returns:
        Cost in tokens of heads and prefixes, and the groups as (length of the prefix, items).
    """
    shared = _common(heads[order[0]], heads[order[-1]], given)
    prefix = shared + _CALL if shared and len(order) > 1 else 0
    depth = shared if prefix else 0
    stay, cost, groups = [], 0, []
    for part in _parts(heads, order, shared):
        alone = sum(len(heads[item]) - depth for item in part)
        if len(part) > 1 and len(part) < len(order):
            better, found = _split(heads, part, shared)
            if better < alone:
                cost, groups = cost + better, groups + found
                continue
        stay += part
        cost += alone
    if stay:
        cost, groups = cost + prefix, [(depth, stay), *groups]
    plain = sum(len(heads[item]) for item in order)
    return (cost, groups) if cost < plain else (plain, [(0, order)])


def _common(left: list[int], right: list[int], start: int) -> int:
    """Length of the common beginning."""
    size = min(len(left), len(right))
    return next((at for at in range(start, size) if left[at] != right[at]), size)


def _parts(heads: Sequence[list[int]], order: list[int], at: int) -> list[list[int]]:
    """Items by the token that follows their common beginning."""
    parts: dict[int | None, list[int]] = {}
    for item in order:
        parts.setdefault(heads[item][at] if len(heads[item]) > at else None, []).append(item)
    return list(parts.values())


def _tree(item: int, choices: Sequence[Encoding], start: int) -> Tree:
    """Lay out an item's tokens behind a prefix of ``start`` tokens."""
    tree, known = Tree(item), {}
    for choice in choices:
        node, first = -1, max(choice.prompt_length, 1)
        for position, token in enumerate(choice.input_ids[start:], start):
            if position >= first:
                tree.nodes.append(node)
                tree.targets.append(token)
            if position == len(choice.input_ids) - 1:
                break
            key = (node, token)
            if key not in known:
                known[key] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(node)
                tree.depth.append(position)
            node = known[key]
    return tree


def _sees(tree: Tree, size: int) -> Tensor:
    """Ancestors of every node and the node itself, bool [size, size]; padding sees itself."""
    seen = torch.eye(size, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
