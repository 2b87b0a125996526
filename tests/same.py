"""Whether two runs ended alike, to the bit."""

import json

from neurogen_numba.storage import checkpoint


def last_checkpoint(run):
    """Every array and document of the last checkpoint, and its name; the times, which differ from run to run, are taken out."""
    saved = checkpoint.load(checkpoint.latest(run))
    for name in ("seconds", "looking"):
        saved.documents["trainer"].pop(name)
    return saved.tensors, saved.documents, saved.folder.name


def assert_equal_runs(run, other):
    """Weights, moments, state of the neurons, place in the text, and what was measured on the way: the same bits."""
    (tensors, documents, name), (other_tensors, other_documents, other_name) = last_checkpoint(run), last_checkpoint(other)
    assert name == other_name and documents == other_documents
    assert set(tensors) == set(other_tensors) == {"brain", "embeddings", "decoder", "optimizer", "state"}
    for group in tensors:
        assert tensors[group].keys() == other_tensors[group].keys()
        for key, array in tensors[group].items():
            assert array.dtype == other_tensors[group][key].dtype and array.tobytes() == other_tensors[group][key].tobytes(), (group, key)
    assert measured(run) == measured(other)


def measured(run):
    """What metrics.jsonl says of each step, without times."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["kind"] in ("step", "evaluation", "sample")]
    records = [{name: value for name, value in record.items() if name not in ("seconds", "tokens_per_second", "waited")} for record in kept]
    # A run that was killed between its last checkpoint and its summary measures its end a second time.
    return [record for index, record in enumerate(records) if record not in records[:index]]
