"""The loss of the first step beside transformers' and PEFT's: whole, in parts, masked and packed."""

import pytest
import torch

from llmtool.core.contracts import IGNORE, Batch
from llmtool.models import pretrained
from llmtool.models.adapters import LoRAConfig
from llmtool.tasks.language import LanguageTask
from llmtool.training.loop import Loop, Plan, Verbs
from llmtool.training.optimizers import AdamWConfig
from llmtool.training.schedules import ConstantSchedule
from llmtool.training.throughput import Meter
from tests.models.small import transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
LENGTH, ROWS = 16, 4


class Rows:
    """Rows of tokens with ragged masks; `lengths`: of the documents that fill each row."""

    rows, tokens_per_row = ROWS, LENGTH

    def __init__(self, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(4)
        self.ids = torch.randint(61, (ROWS, LENGTH), generator=generator)
        self.labels = torch.where(torch.rand(self.ids.shape, generator=generator) < 0.6, self.ids, IGNORE)
        self.lengths = lengths
        numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
        self.segments = numbers.expand(ROWS, LENGTH)

    def batch(self, start: int, count: int) -> Batch:
        """A document's last token has the next one's first as no target of its own."""
        targets = torch.roll(self.labels, -1, dims=1)
        ends = torch.tensor(self.lengths).cumsum(0) - 1
        targets[:, ends] = IGNORE
        part = slice(start, start + count)
        return Batch(self.ids[part], targets[part], self.segments[part] if len(self.lengths) > 1 else None)

    def where(self, start: int, count: int) -> list[str]:
        return []

    def documents(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each document alone: ids and labels, as transformers takes them."""
        found = []
        for row, labels in zip(self.ids, self.labels, strict=True):
            found += list(zip(row.split(self.lengths), labels.split(self.lengths), strict=True))
        return found


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("lengths", [[16], [9, 4, 3]], ids=["alone", "packed"])
@pytest.mark.parametrize("micro_batch", [4, 3, 1])
def test_first_loss(architecture, adapted, lengths, micro_batch, tmp_path):
    rows, model = Rows(lengths), transformer(architecture)
    pretrained.save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    if adapted:
        config = peft.LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
        theirs = peft.get_peft_model(theirs, config)
        LoRAConfig(rank=2).apply(model)
    documents = rows.documents()
    scored = sum(int((labels[1:] != IGNORE).sum()) for _, labels in documents)
    wanted = sum(  # transformers divides by what it is told, as its Trainer does with accumulated batches
        theirs(input_ids=ids[None], labels=labels[None], num_items_in_batch=scored).loss
        for ids, labels in documents
    )
    task = LanguageTask()
    loop = Loop(
        model=model.train(),
        loss=lambda batch: task.loss(model, batch),
        compiled=None,
        batches=rows,
        optimizers=AdamWConfig(name="adamw").build(model),
        schedule=ConstantSchedule(name="constant"),
        plan=Plan(batch=ROWS, micro_batch=micro_batch, steps=1),
        device=torch.device("cpu"),
        meter=Meter(ROWS, LENGTH),
        verbs=Verbs(None, lambda row: None, lambda state, better: None),
    )
    total, count = loop.accumulate(0, 1.0)
    assert count == scored
    assert total / count == pytest.approx(wanted.item(), abs=1e-5)
    wanted.backward()
    theirs_norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None])
    if not adapted:  # the random starts of updates are others
        assert float(loop.norm()) / count == pytest.approx(theirs_norm.item(), abs=1e-5)
