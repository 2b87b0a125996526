"""The sizes that people use. A row holds only what differs from the defaults in config.py."""

from __future__ import annotations

from .config import Brain, Config, Module, Text, Training, did_you_mean
from .errors import ConfigError

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
        training=Training(steps=2000, max_minutes=4.0, batch=16, segment=64, learning_rate=6e-3, checkpoint_interval=500),
        text=Text(vocabulary=1024),
    ),
    "shakespeare-cpu": Config(  # characters of a megabyte of text, on two CPU cores, in ten minutes
        preset="shakespeare-cpu",
        brain=Brain(
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
        ),
        training=Training(steps=6000, batch=16, segment=64, checkpoint_interval=1000),
        text=Text(tokenizer="char"),
    ),
    "shakespeare": Config(  # the same text, on a GPU
        preset="shakespeare",
        brain=Brain(
            thalamus=Module(512),
            wernicke=Module(2048),
            hippocampus=Module(1024),
            pfc=Module(2048, outputs=256),
            basal_ganglia=Module(512),
            broca=Module(2048),
            fan_in=192,
            memory_context=4,
        ),
        training=Training(
            steps=8000,
            batch=64,
            segment=128,
            dropout=0.35,
            weight_decay=0.3,
            final_rate=0.01,
            eval_interval=500,
            sample_interval=2000,
            log_interval=100,
        ),
        text=Text(tokenizer="char"),
    ),
    "wikitext": Config(  # the words of WikiText-2, on a GPU
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
            delays=12,
        ),
        training=Training(
            steps=14000,
            batch=64,
            segment=64,
            warmup=300,
            dropout=0.45,
            weight_decay=1.0,
            final_rate=0.01,
            fresh=0.005,
            eval_interval=1000,
            sample_interval=7000,
            checkpoint_interval=7000,
            log_interval=100,
        ),
        text=Text(tokenizer="word", vocabulary=33278, validation=0.01),
    ),
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
        training=Training(steps=10000, batch=16, segment=128, dropout=0.1),
        text=Text(vocabulary=8000),
    ),
    "llm": Config(  # as large as the old system: words of large texts, on a GPU
        preset="llm",
        brain=Brain(
            thalamus=Module(1024, lateral=48),
            wernicke=Module(10240, outputs=2560, lateral=64),
            hippocampus=Module(5120, lateral=64),
            pfc=Module(10240, outputs=2560, lateral=96),
            basal_ganglia=Module(2560, outputs=640, lateral=64),
            broca=Module(10240, outputs=2560, lateral=64),
            fan_in=64,
            late_delays=2,
        ),
        training=Training(steps=10000, batch=128, segment=64, learning_rate=2e-3),
        text=Text(vocabulary=50257),
    ),
}


def get_preset(name: str) -> Config:
    """The preset called `name`. Raises ConfigError, naming the nearest, where there is none."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
