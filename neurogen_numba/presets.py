"""The presets. A row contains only the fields that differ from the defaults in config.py."""

from __future__ import annotations

import dataclasses

from .config import Brain, Config, Module, Text, Training, did_you_mean
from .errors import ConfigError


def _four_gb(preset: str, thalamus: int, broca: Module, embedding: int, segment: int) -> Config:
    """A preset for a card of 4 GB: many neurons with few synapses, in proportion to the Thalamus, and settings that save memory."""
    return Config(
        preset=preset,
        brain=Brain(
            thalamus=Module(thalamus, lateral=64),
            wernicke=Module(10 * thalamus, outputs=2 * thalamus, lateral=96),
            hippocampus=Module(5 * thalamus, lateral=96),
            pfc=Module(10 * thalamus, outputs=2 * thalamus, lateral=128),
            basal_ganglia=Module(5 * thalamus // 2, outputs=thalamus // 2, lateral=96),
            broca=broca,
            embedding=embedding,
            fan_in=16,
            late_delays=2,
        ),
        training=Training(steps=10000, batch=1, segment=segment, optimizer="adafactor", activation_memory="recompute", learning_rate=2e-3),
        text=Text(vocabulary=32000),
    )


SMALL = Brain(  # of shakespeare-cpu and tasks
    thalamus=Module(256),
    wernicke=Module(1024),
    hippocampus=Module(512),
    pfc=Module(1024, outputs=64),
    basal_ganglia=Module(256),
    broca=Module(1024),
    embedding=256,
    fan_in=128,
    hypercolumn=128,
    memory_heads=4,
    memory_width=32,
    memory_context=4,
)

MEDIUM = Brain(  # of shakespeare and dialogues
    thalamus=Module(512),
    wernicke=Module(2048),
    hippocampus=Module(1024),
    pfc=Module(2048, outputs=256),
    basal_ganglia=Module(512),
    broca=Module(2048),
    fan_in=192,
)

WIKITEXT = Config(
    preset="wikitext",
    brain=Brain(
        thalamus=Module(768),
        wernicke=Module(2048),
        hippocampus=Module(1024),
        pfc=Module(2048, outputs=256),
        basal_ganglia=Module(512),
        broca=Module(2048, outputs=768),
        embedding=768,
        tied=True,
        fan_in=256,
        delays=1,
    ),
    training=Training(
        steps=12000,
        batch=256,
        segment=64,
        warmup=300,
        dropout=0.6,
        weight_decay=1.6,
        average=500,
        rewire_interval=500,
        final_rate=0.4,
        reset_prob=0.005,
        eval_interval=1000,
        sample_interval=2000,
        log_interval=100,
    ),
    text=Text(tokenizer="word", vocabulary=33278, validation=0.01),
).with_neuron("adlif")

LLM = Config(
    preset="llm",
    brain=Brain(
        thalamus=Module(1024, lateral=48),
        wernicke=Module(10240, outputs=2560, lateral=64),
        hippocampus=Module(5120, lateral=64),
        pfc=Module(10240, outputs=2560, lateral=96),
        basal_ganglia=Module(2560, outputs=640, lateral=64),
        broca=Module(10240, outputs=2560, lateral=64),
        fan_in=64,
        bundle=64,  # for speed
        late_delays=2,
        feedback_chunks=3,
    ),
    training=Training(steps=10000, batch=128, segment=64, learning_rate=2e-3),
    text=Text(vocabulary=50257),
)

PRESETS = {
    "nano": Config(  # the built-in stories, on two CPU cores, in minutes
        preset="nano",
        brain=Brain(
            thalamus=Module(128),
            wernicke=Module(512),
            hippocampus=Module(256),
            pfc=Module(512, outputs=64),
            basal_ganglia=Module(128),
            broca=Module(512),
            embedding=128,
            fan_in=32,
            delays=8,
            hypercolumn=128,
            memory_heads=4,
            memory_fan_in=256,
        ),
        training=Training(steps=4000, max_minutes=4.0, batch=16, segment=64, learning_rate=6e-3, checkpoint_interval=500),
        text=Text(vocabulary=1024),
    ),
    "shakespeare-cpu": Config(  # characters of a megabyte of text, on two CPU cores; ten minutes are enough
        preset="shakespeare-cpu",
        brain=dataclasses.replace(
            SMALL, wernicke=Module(768), pfc=Module(768, outputs=64), broca=Module(768), fan_in=192, delays=1, feedback=0
        ),
        training=Training(
            steps=8000,
            batch=16,
            segment=64,
            dropout=0.1,
            dropout_end=0.75,
            average=500,
            rewire_interval=300,
            final_rate=0.4,
            checkpoint_interval=1000,
        ),
        text=Text(tokenizer="char"),
    ).with_neuron("adlif"),
    "shakespeare": Config(  # the same text, on a GPU
        preset="shakespeare",
        brain=dataclasses.replace(MEDIUM, memory_context=4, feedback=0),
        training=Training(
            steps=8000,
            batch=32,
            segment=256,
            dropout=0.35,
            axon_dropout=0.35,
            dropout_end=0.95,
            weight_decay=0.3,
            average=500,
            rewire_interval=300,
            final_rate=0.4,
            eval_interval=500,
            sample_interval=2000,
            log_interval=100,
        ),
        text=Text(tokenizer="char"),
    ).with_neuron("adlif"),
    "tasks": Config(  # `neurogen bench tasks`, on a GPU; the task sets the vocabulary and the segment
        preset="tasks",
        brain=SMALL,
        training=Training(steps=7000, batch=128, dropout=0.1, axon_dropout=0.1, eval_interval=1000),
        text=Text(tokenizer="char"),
    ),
    "wikitext": WIKITEXT,  # the words of WikiText-2, on a GPU
    # the words of some books, a text as small as WikiText-2, on a GPU
    "books": dataclasses.replace(WIKITEXT, preset="books").replace(brain={"feedback": 0}, training={"dropout": 0.5}),
    "dialogues": Config(  # lines of two speakers, to chat with; on a GPU
        preset="dialogues",
        brain=dataclasses.replace(MEDIUM, delays=1),
        training=Training(
            steps=3000,
            batch=128,
            segment=64,
            dropout=0.5,
            weight_decay=0.3,
            average=500,
            rewire_interval=300,
            final_rate=0.4,
            eval_interval=500,
            sample_interval=1000,
            log_interval=100,
        ),
        text=Text(vocabulary=4000, speakers="User: System:"),
    ).with_neuron("adlif"),
    "baseline": Config(  # larger texts
        preset="baseline",
        brain=Brain(
            thalamus=Module(512),
            wernicke=Module(4096),
            hippocampus=Module(2048),
            pfc=Module(4096, outputs=512),
            basal_ganglia=Module(1024),
            broca=Module(4096),
        ),
        training=Training(steps=10000, batch=16, segment=128, dropout=0.1, axon_dropout=0.1),
        text=Text(vocabulary=8000),
    ),
    "llm": LLM,  # as large as NeuroGen 2.0: pieces of large texts, on a GPU
    # as large as llm, for pieces of some books, on a GPU
    "llm-books": dataclasses.replace(LLM, preset="llm-books")
    .replace(
        brain={"broca": {"outputs": 3008}, "embedding": 3008, "tied": True, "delays": 1},
        training={
            "steps": 1500,
            "batch": 32,
            "segment": 256,
            "dropout": 0.6,
            "weight_decay": 1.0,
            "average": 200,
            "rewire_interval": 200,
            "final_rate": 0.4,
            "eval_interval": 100,
        },
    )
    .with_neuron("adlif"),
    # four times as many neurons as llm, for a card of 4 GB
    "scale-4gb": _four_gb("scale-4gb", 4096, broca=Module(40960, outputs=8192, lateral=96), embedding=1024, segment=128),
    "scale-max": Config(  # the most neurons, with few synapses each; decoder and embedding alone are 294.9 million parameters
        preset="scale-max",
        brain=Brain(
            thalamus=Module(7680),
            wernicke=Module(76800, outputs=8192),
            hippocampus=Module(38400),
            pfc=Module(76800, outputs=8192),
            basal_ganglia=Module(19200, outputs=2048),
            broca=Module(76800, outputs=8192),
            embedding=1024,
            fan_in=16,
            late_delays=1,
            delays=8,
        ),
        training=Training(steps=10000, batch=8, segment=128, optimizer="adafactor", activation_memory="recompute", learning_rate=2e-3),
        text=Text(vocabulary=32000),
    ),
    # a card of 4 GB without tensor cores: scale-4gb with a Broca that the decoder reads itself
    "gtx1650": _four_gb("gtx1650", 4096, broca=Module(8192, lateral=96), embedding=768, segment=256),
    # room left for a desktop: three quarters of Broca, half of all else
    "gtx1650-conservative": _four_gb("gtx1650-conservative", 2048, broca=Module(6144, lateral=96), embedding=512, segment=128),
    # what the card holds: half as much again of Broca and decoder, three quarters of the rest
    "gtx1650-aggressive": _four_gb("gtx1650-aggressive", 3072, broca=Module(12288, lateral=96), embedding=1024, segment=256),
}


FOUR_GB = "scale-4gb", "gtx1650", "gtx1650-conservative", "gtx1650-aggressive"  # made for a card of that size


def get_preset(name: str) -> Config:
    """The preset called `name`. Raises ConfigError, with the nearest name, if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
