"""Records become tokens, one game a row; what the rules refuse is quarantined with its place and move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F

from llmtool.core.contracts import IGNORE, NextToken
from llmtool.core.errors import ConfigError, DataError
from llmtool.data import DataConfig
from llmtool.data.batches import open_batches, unit_edges
from llmtool.data.games import rules_of
from llmtool.data.games.legality import Legality
from llmtool.data.games.moves import MovesEncoder, parts_of, tokenizer_of
from llmtool.data.games.othello import MOVES, SQUARES, Othello
from llmtool.data.games.othello_many import random_games
from llmtool.data.packing import is_packed
from llmtool.data.store import Dataset
from llmtool.models.transformer import TransformerConfig
from llmtool.stages.assemble import new_model
from llmtool.stages.prepare import PrepareResult, prepare

GAMES = [[SQUARES[move] for move in game if move >= 0] for game in random_games(9, 0, 60)]
SHORTEST = "e6f4e3f6g5d6e7f5c5"  # nobody can move after it


def run(lines: list[str], tmp_path: Path, max_bad: float = 1.0, **encode: Any) -> PrepareResult:
    (tmp_path / "games.txt").write_text("\n".join(lines))
    config = DataConfig.model_validate(
        {
            "source": {"format": "text", "path": str(tmp_path / "games.txt"), "documents": "line"},
            "encode": {"as": "moves", "game": "othello", "moves": "text", **encode},
            "max_bad": max_bad,
        }
    )
    (tmp_path / "prepare").mkdir()
    return prepare(config, 0, tmp_path / "prepare")


def texts() -> list[str]:
    """Separated, run together, in capitals, numbered."""
    ways = (" ".join, "".join, lambda m: "".join(m).upper(), lambda m: ", ".join(m))
    return [ways[number % 4](game) for number, game in enumerate(GAMES)]


def test_every_game_is_a_row_of_whole_moves(tmp_path: Path) -> None:
    made = run(texts(), tmp_path)
    assert made.ledger["quarantined"] == {}
    dataset = Dataset.open(tmp_path / "prepare")
    assert dataset.card["targets"] == {"kind": "next_token", "vocabulary": 61, "game": "othello"}
    seen = []
    for name in dataset.splits:
        batches = open_batches(dataset, name, 0, context=60)
        assert batches.rows == dataset.split(name).rows == len(unit_edges(dataset.split(name))) - 1
        for batch in batches.in_order(8):
            assert batch.segments is None
            assert (batch.inputs[:, 0] == 0).all()
            for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
                moves = targets[targets != IGNORE]
                assert (inputs[1 : len(moves)] == moves[:-1]).all()
                seen.append([MOVES[move - 1] for move in moves])
    assert sorted(seen) == sorted(GAMES)
    trained = open_batches(dataset, "train", 0, context=60).batch(0, 48).targets
    assert len(np.unique(trained.numpy(), axis=0)) == 48


@pytest.mark.parametrize("packing", [True, False])
def test_short_games_share_a_row_in_training_and_stand_alone_when_they_are_judged(
    tmp_path: Path, packing: bool
) -> None:
    lines = [" ".join(game[: 10 + number]) for number, game in enumerate(GAMES[:24])]
    run(lines, tmp_path, unfinished="keep", packing=packing)
    dataset = Dataset.open(tmp_path / "prepare")
    batches, split = open_batches(dataset, "train", 0, context=60), dataset.split("train")
    assert is_packed(dataset.card, "train", 60) == packing
    assert is_packed(dataset.card, "train", split.meta["two_shortest"]) == packing
    assert not is_packed(dataset.card, "train", split.meta["two_shortest"] - 1)
    judged = next(batches.in_order(100))
    assert judged.segments is None
    assert len(judged) == split.rows
    assert judged.inputs.shape[1] == split.meta["longest"]
    once = batches.batch(0, batches.rows)
    assert (once.targets != IGNORE).sum() == (judged.targets != IGNORE).sum()
    if not packing:
        assert batches.rows == split.rows
        return
    assert batches.rows < split.rows
    assert once.inputs.shape[1] == 60
    assert once.segments is not None
    assert int((once.inputs == 0).logical_and(once.segments > 0).sum()) == split.rows  # each begins anew


@pytest.mark.parametrize("packing", [True, False])
def test_rows_to_train_on_say_what_the_rules_allow_at_every_move(tmp_path: Path, packing: bool) -> None:
    lines = [" ".join(game[: 10 + number]) for number, game in enumerate(GAMES[:24])]
    run(lines, tmp_path, unfinished="keep", packing=packing)
    dataset, rules = Dataset.open(tmp_path / "prepare"), Othello()
    batches = open_batches(dataset, "train", 0, context=60, legality=Legality("othello"))
    batch = batches.batch(0, batches.rows)
    assert batch.allowed is not None
    assert batch.allowed.shape == (*batch.inputs.shape, 61)
    assert not batch.allowed[batch.targets == IGNORE].any()
    position = rules.start()
    for inputs, targets, allowed in zip(batch.inputs, batch.targets, batch.allowed, strict=True):
        for token, target, legal in zip(inputs.tolist(), targets.tolist(), allowed, strict=True):
            if target == IGNORE:
                break
            position = rules.start() if token == 0 else rules.play(position, MOVES[token - 1])
            assert [MOVES[at - 1] for at in legal.nonzero()[:, 0].tolist()] == rules.legal(position)
    assert next(batches.in_order(100)).allowed is None  # the figures' own business
    assert open_batches(dataset, "train", 0, context=60).batch(0, 3).allowed is None


def test_what_the_rules_refuse_is_quarantined_with_its_place_and_move(tmp_path: Path) -> None:
    bad = ["f5 d6 c3 f5", "f5 d6 z9 c3", "f5 d6 c3", SHORTEST + "a1", "hello"]
    made = run([*texts(), *bad, SHORTEST], tmp_path)
    assert made.ledger["quarantined"] == {
        "an illegal move": 2,
        "a move that cannot be read": 2,
        "a record that ends early": 1,
    }
    lines = [json.loads(line) for line in (tmp_path / "prepare/quarantine.jsonl").read_text().splitlines()]
    assert {line["line"]: line["reason"] for line in lines} == {
        61: "an illegal move: move 4: f5 is occupied",
        62: "a move that cannot be read: move 3: 'z9 c3' is no square (a1 to h8)",
        63: "a record that ends early: after move 3 the game goes on",
        64: "an illegal move: move 10: a1 comes after the end of the game",
        65: "a move that cannot be read: move 1: 'hello' is no square (a1 to h8)",
    }


def test_too_many_bad_records_are_refused_with_their_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"games.txt, line 61: an illegal move: move 2: f5 is occupied"):
        run([*texts(), "f5f5"], tmp_path, max_bad=0.01)


def test_records_may_be_cut_before_what_is_wrong(tmp_path: Path) -> None:
    lines = [*texts(), "f5 d6 c3 f5", "f5 d6 z9", "f5d6c4", "a1"]
    made = run(lines, tmp_path, illegal="cut", unfinished="keep", length=50)
    assert made.ledger["quarantined"] == {"an illegal move": 1}
    assert sum(made.ledger["kept"].values()) == 63
    notes = " ".join(made.notes)
    assert "games cut at a move that is illegal or cannot be read" in notes
    assert "cut to 50 moves" in notes
    assert max(meta["longest"] for meta in made.card["splits"].values()) == 50


def test_equal_games_stay_in_one_split_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = run([text for game in GAMES for text in (" ".join(game), "".join(game).upper())], tmp_path)
    dataset = Dataset.open(tmp_path / "prepare")
    games = {
        name: {
            tuple(row.tolist())
            for batch in open_batches(dataset, name, 0, context=60).in_order(8)
            for row in batch.targets
        }
        for name in dataset.splits
    }
    assert not games["train"] & games["test"]
    assert not games["train"] & games["validation"]
    assert sum(made.ledger["kept"].values()) == 2 * sum(map(len, games.values()))


def test_near_copies_across_splits_are_reported(tmp_path: Path) -> None:
    longer = [game for game in GAMES if len(game) == 60]
    lines = [" ".join(game[:end]) for game in longer for end in (57, 58, 59, 60)]
    made = run(lines, tmp_path, unfinished="keep")
    assert any("are nearly the same as one of train" in note for note in made.notes)


def test_the_tokenizer_reads_and_writes_moves() -> None:
    fitted = tokenizer_of(Othello())
    assert fitted.tokenizer.encode("f5 d6").ids == [0, 1 + MOVES.index("f5"), 1 + MOVES.index("d6")]
    assert fitted.decode([0, 1, 60]) == "<start> a1 h8"


def test_the_encoder_is_restored_and_refuses_another_vocabulary(tmp_path: Path) -> None:
    run(texts(), tmp_path)
    state = Dataset.open(tmp_path / "prepare").card["encoder"]
    assert MovesEncoder.from_state(state, tmp_path).state() == state
    older = {name: value for name, value in state.items() if name != "packing"}
    assert MovesEncoder.from_state(older, tmp_path).config.packing is False
    broken = {**state, "tokenizer": {**state["tokenizer"], "hash": "x"}}
    with pytest.raises(DataError, match="another vocabulary of moves"):
        MovesEncoder.from_state(broken, tmp_path)
    with pytest.raises(DataError, match="incomplete"):
        MovesEncoder.from_state({}, tmp_path)


def test_mistakes_in_the_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'move'"):
        run(texts(), tmp_path, moves="move")
    with pytest.raises(ValueError, match="documents: line"):
        DataConfig.model_validate(
            {"source": {"format": "text", "path": "x"}, "encode": {"as": "moves", "game": "othello"}}
        )
    dataset = Path(tmp_path / "other")
    dataset.mkdir()
    run(texts(), dataset)
    with pytest.raises(ConfigError, match=r"a game of train has 60 moves .*the model's context takes 32"):
        open_batches(Dataset.open(dataset / "prepare"), "train", 0, context=32)


def test_the_parts_of_a_move_say_which_it_is() -> None:
    first, *others = parts_of("chess")
    assert first == ()
    assert len(set(others)) == len(others) == len(rules_of("chess").vocabulary())
    assert len({part for parts in others for part in parts}) == 64 + 64 + 4


def test_moves_of_a_new_model_begin_as_their_relatives(tmp_path: Path) -> None:
    """Of chess; Othello's are few, and learn faster without."""
    chess = [f"{first} e7e5" for first in ("e2e4", "d2d4", "c2c4", "g1f3") for _ in range(8)]
    config = TransformerConfig(depth=1, width=256, context=64)
    likeness = []
    for game, records, one, other, third in (
        ("chess", chess, "g1f3", "g1h3", "d2d4"),
        ("othello", texts(), "c4", "c5", "f4"),
    ):
        (tmp_path / game).mkdir()
        run(records, tmp_path / game, game=game)
        dataset = Dataset.open(tmp_path / game / "prepare")
        model = new_model(config, NextToken(dataset.targets["vocabulary"]), dataset)
        weight = model.get_parameter("model.embed_tokens.weight").detach()
        of = dict(zip(["<start>", *rules_of(game).vocabulary()], weight, strict=True))
        likeness += [F.cosine_similarity(of[one], of[name], dim=0).item() for name in (other, third)]
    assert likeness[0] > 0.25 > max(likeness[1:])
