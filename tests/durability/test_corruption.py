"""Fifty flipped bits, files cut and files missing: nothing of it is served, and a peer makes the replica whole."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.durability.corruption import Damage, Subject, make_peer, random_flip, survives

FLIPS = 50


def judge(tmp_path: Path, seed: int, damages: list[Damage], subject: Subject) -> Counter[str]:
    peer = make_peer(tmp_path / "peer", subject.known)
    ends: Counter[str] = Counter()
    wrong = []
    try:
        for number, damage in enumerate(damages):
            found, end = survives(subject, damage, tmp_path / str(number), peer)
            ends[end] += 1
            wrong += [f"{damage}: {each}" for each in found]
    finally:
        peer.close()
    print(f"seed {seed}: {dict(ends)}")
    assert not wrong, "\n".join(wrong)
    return ends


@pytest.mark.parametrize("log", [True, False])
def test_no_flipped_bit_is_served(tmp_path: Path, *, log: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    subject = Subject.make(tmp_path / "made", seed, log=log)
    damages = [random_flip(subject, random_, opened=number % 2 == 1) for number in range(FLIPS // 2)]
    judge(tmp_path, seed, damages, subject)


def test_no_cut_or_missing_file_is_served(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    subject = Subject.make(tmp_path / "made", seed, log=False)
    damages = []
    for path in subject.files():
        size = len(subject.image.entries[path] or b"")
        damages += [Damage(path, "missing", opened=False), Damage(path, "cut", False, random_.randrange(size))]
    judge(tmp_path, seed, damages, subject)
