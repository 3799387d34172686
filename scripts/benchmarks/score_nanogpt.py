"""Loss of a nanoGPT checkpoint over its whole validation file, as llmtool scores its own.

python score_nanogpt.py NANOGPT OUT_DIR      prints one line of JSON
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

root, out = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(root))
from model import GPT, GPTConfig  # noqa: E402  # nanoGPT's own

saved = torch.load(out / "ckpt.pt", map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
tokens = np.fromfile(root / "data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64)
context = saved["model_args"]["block_size"]
total = count = 0.0
with torch.no_grad():
    # windows of equal length go together; the rest at the end is a window of its own
    whole = (len(tokens) - 1) // context
    inputs = torch.from_numpy(tokens[: whole * context].reshape(whole, context))
    targets = torch.from_numpy(tokens[1 : whole * context + 1].reshape(whole, context))
    rest = [
        (
            torch.from_numpy(tokens[None, whole * context : -1]),
            torch.from_numpy(tokens[None, whole * context + 1 :]),
        )
    ]
    for x, y in [
        *zip(inputs.split(64), targets.split(64), strict=True),
        *(rest if len(rest[0][0][0]) else []),
    ]:
        loss = model(x, y)[1]
        total += loss.item() * y.numel()
        count += y.numel()
print(json.dumps({"loss": total / count, "tokens": int(count), "step": int(saved["iter_num"])}))
