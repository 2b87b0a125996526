"""A transformer to compare with: GPT-2's architecture, on a token file, in PyTorch.

    neurogen tokenize texts/ --out train.bin --vocab-size 50257
    neurogen tokenize held-out/ --out val.bin --tokenizer train.tokenizer/tokenizer.model
    python examples/transformer.py train.bin val.bin --steps 1000

With its defaults it has as many parameters as the preset `llm` and reads as many tokens in an update. Every held-out token is scored once,
with at least half of a window before it, except at the beginning. It needs PyTorch, and a GPU unless it is made small.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x):  # [B, T, width]
        parts = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        x = x + F.dropout(self.project(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.before_mlp(x)), self.dropout, self.training)


class Transformer(nn.Module):
    """Pre-norm, learned positions, embedding and decoder tied: Radford et al. 2019."""

    def __init__(self, vocabulary, window, width, layers, heads, dropout):
        super().__init__()
        self.dropout = dropout
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("project.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids):  # [B, T] -> logits [B, T, vocabulary]
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        x = self.norm(self.blocks(F.dropout(x, self.dropout, self.training)))
        return x @ self.tokens.weight.T


@torch.no_grad()
def held_out(model, tokens, window, device):
    """Nats per token over all of `tokens` but the first. Windows overlap by half; each scores what the one before it has not."""
    targets, total = len(tokens) - 1, 0.0
    starts = np.append(np.arange(0, targets - window, window // 2), targets - window)
    ends = np.insert(starts[:-1] + window, 0, 0)  # of the window before, in targets
    model.eval()
    for some in np.array_split(np.arange(len(starts)), math.ceil(len(starts) / 32)):
        offset = starts[some, None] + np.arange(window + 1)
        ids = torch.from_numpy(tokens[offset].astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16):
            losses = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        fresh = torch.from_numpy(offset[:, :-1] >= ends[some, None]).to(device)
        total += losses.view(fresh.shape)[fresh].double().sum().item()
    model.train()
    return total / targets


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_argument("train", help="token file of the text to train on, uint16")
    flags.add_argument("held_out", help="token file of the text to score")
    flags.add_argument("--vocabulary", type=int, default=50257, help="kinds of tokens")
    flags.add_argument("--bytes-held-out", type=int, default=0, help="UTF-8 bytes of the held-out text, for bits per byte")
    flags.add_argument("--steps", type=int, default=1000, help="updates")
    flags.add_argument("--batch", type=int, default=32, help="windows in an update")
    flags.add_argument("--window", type=int, default=256, help="tokens")
    flags.add_argument("--layers", type=int, default=18, help="blocks")
    flags.add_argument("--width", type=int, default=768, help="numbers per token")
    flags.add_argument("--heads", type=int, default=12, help="of the attention")
    flags.add_argument("--dropout", type=float, default=0.1, help="share of values")
    flags.add_argument("--rate", type=float, default=6e-4, help="largest learning rate")
    flags.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices")
    flags.add_argument("--seed", type=int, default=0, help="of weights and windows")
    args = flags.parse_args()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device, draw = "cuda" if torch.cuda.is_available() else "cpu", np.random.default_rng(args.seed)
    text, rest = np.fromfile(args.train, np.uint16), np.fromfile(args.held_out, np.uint16)
    if min(len(text), len(rest)) <= args.window or args.steps < 1:
        flags.error(
            f"at least one update is needed, and more than {args.window} tokens of each text; they have {len(text)} and {len(rest)}"
        )
    model = Transformer(args.vocabulary, args.window, args.width, args.layers, args.heads, args.dropout).to(device)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": args.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=device == "cuda")
    warmup = max(1, args.steps // 20)

    def share(step):  # of the largest rate: linear warm-up, then a cosine to a tenth
        return min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * step / args.steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    trained = torch.compile(model)
    started, timed, seen = time.perf_counter(), None, args.batch * args.window
    best = math.inf
    for step in range(1, args.steps + 1):
        first = draw.integers(0, len(text) - args.window, args.batch)
        ids = torch.from_numpy(np.stack([text[i : i + args.window + 1] for i in first]).astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(trained(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step == 20:  # compiled by now
            loss.item()
            timed, pause = time.perf_counter(), 0.0
        if step % 200 == 0 or step == args.steps:
            now = time.perf_counter()
            score = held_out(model, rest, args.window, device)
            best, paused = min(best, score), time.perf_counter() - now
            pause = pause + paused if timed else 0.0
            print(f"step {step}/{args.steps}  loss {loss.item():.4f}  held out {score:.4f}", flush=True)
    seconds = time.perf_counter() - started
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": args.steps * seen,
        "held_out_nats": score,
        "best_held_out_nats": best,
        "seconds": seconds,
        "tokens_per_second": (args.steps - 20) * seen / (time.perf_counter() - timed - pause) if timed and args.steps > 20 else None,
    }
    if args.bytes_held_out:
        result["held_out_bits_per_byte"] = score * (len(rest) - 1) / math.log(2) / args.bytes_held_out
    print(json.dumps(result))


if __name__ == "__main__":
    main()
