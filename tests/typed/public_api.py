"""What type checkers and editors make of the public names; `make types` checks it strictly, and nothing runs it."""

from pathlib import Path

import numpy as np

import neurogen_numba as ng
from neurogen_numba.config import Module
from neurogen_numba.errors import NeuroGenError
from neurogen_numba.learning.report import StepReport


def enough(report: StepReport) -> bool:
    return report.loss > 1.5 and report.activity["broca"] < 0.5


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("*.txt")]


config = ng.get_preset("nano").replace(training={"steps": 500}, brain={"pfc": Module(256, outputs=64)})
try:
    run = ng.train(config, texts(Path("books")), name="mine", on_step=enough)
except NeuroGenError as error:
    raise SystemExit(str(error)) from None
losses = run.history.training["loss"]
best = losses.min() if losses.size else np.inf
print(run.folder.name, f"{float(best):.3f}", run.summary.get("val_loss"), [sample.text for sample in run.history.samples])
figures = [run.plot(), run.brain()]

model = ng.load("mine@best", backend="cpu")
neurons: int = model.config.brain.pfc.neurons
for piece in model.write("Anna keeps", 60, temperature=0.7, stream=True):
    print(piece.upper(), end="")
answer: str = model.write("Anna keeps", 60).strip()
ids = np.arange(12)
logits = model.logits(ids)
loss, accuracy = model.train_step(ids[:-1], ids[1:], learning_rate=1e-3)
written = model.generate(ids, 32, seed=1)
print(neurons, answer, logits.shape, loss + accuracy, written.tolist(), model.parameters, figures, run.resume(1000).best())

recording: ng.Recording = model.listen("Jack keeps hares.", states=["wernicke.v"])
raster = recording.raster("wernicke")
share = float(raster.events.mean()) + float(recording.rates["broca"][0]) + recording.rates.mean["pfc"]
nats: float = recording.surprise.mean + float(recording.surprise.bits[1])
recall = model.listen(ids, state=recording.final_state, neurons=None).recalled(-3)
words = [(each.token, word, part) for each in recall.words() for _, word, part in each.sources]
figures += [recording.plot(), raster.plot(), recording.surprise.plot(), recording.rates.plot(), recall.plot(head=0)]
print(recording, recording.states["wernicke.v"].shape, share, nats, words, recall.shares.sum(), recall.before.sum())
with model.lesion("memory_broca", "pfc"):
    answer = model.write("Jack keeps", 4, temperature=0)
connectome = model.connectome
print(connectome["memory_broca"].weight.shape, connectome.memory_broca.mean_weight, [view.synapses for view in connectome])
print(connectome.to_networkx())

model.save(Path("checkpoint"))
again = ng.NeuroGenModel.load("checkpoint")
print(again.tokenizer.vocabulary if again.tokenizer else 0, sorted(ng.PRESETS))
