"""The stream of activations: every token once, whoever reads it and however it is batched."""

import random

import numpy as np
import pytest
import torch

from demur.activations.stream import ActivationStream, read_rows
from demur.data.corpus import Sequences, batches
from tests import tiny


def text(rows: int = 30) -> Sequences:
    rng = random.Random(0)
    return Sequences.of([[rng.randint(4, 250) for _ in range(rng.randint(5, 40))] for _ in range(rows)])


def test_the_stream_gives_every_token_but_the_first_of_each_row_once():
    lm, rows, sites = tiny.lm("llama", torch.float32), text(), ["0.resid_post", "1.resid_post"]
    # Two processes read half each.
    streams = [ActivationStream(lm, sites, rows, capacity=200, seed=0, share=(i, 2)) for i in range(2)]
    found = torch.cat([x for stream in streams for x in stream.through(32)])
    wanted = torch.cat([read_rows(lm, sites, [rows[i]]) for i in range(len(rows))])
    assert len(found) == len(wanted)
    torch.testing.assert_close(found.sort(dim=0).values, wanted.sort(dim=0).values, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("architecture", list(tiny.ARCHITECTURES))
def test_a_row_among_longer_ones_is_read_as_it_is_alone(architecture):
    lm, rows = tiny.lm(architecture), text(12)
    together = read_rows(lm, ["1.resid_post"], [rows[i] for i in range(len(rows))])
    alone = torch.cat([read_rows(lm, ["1.resid_post"], [rows[i]]) for i in range(len(rows))])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=1e-10)


def test_groups_hold_every_sequence_once_and_keep_to_their_size():
    lengths = np.array([random.Random(i).randint(2, 200) for i in range(700)])
    groups = batches(lengths, 1000, seed=0)
    assert sorted(i for group in groups for i in group) == list(range(700))
    assert all(len(group) * max(lengths[group]) <= 1000 for group in groups)
    padding = sum(len(group) * max(lengths[group]) for group in groups) / lengths.sum() - 1
    assert padding < 0.06
