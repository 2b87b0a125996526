"""`neurogen chat`: a conversation with a trained model, on a screen that shows its brain, or as lines through a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command, typed
from .configure import add_neuron_flag, named_neurons
from .errors import ConfigError, NeuroGenError
from .inference.chat_commands import STOPS, Dispatcher


def parser() -> Parser:
    flags = Parser("chat", "Through a pipe, each line of standard input is a message, and standard output has the answers alone.")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--auto-load-latest", action="store_true", help="take the run trained last, as happens without RUN")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--prompt", type=typed, action="append", help="answer this and end; may be repeated, for a conversation")
    flags.add_argument("--temperature", type=float, default=0.5, help="how freely words are drawn; 0 takes the most probable")
    flags.add_argument("--top-k", type=int, default=0, help="draw from the K most probable tokens; 0 is all")
    flags.add_argument("--top-p", type=float, default=0.95, help="draw from the most probable tokens that together have this probability")
    flags.add_argument("--seed", type=int, default=0, help="of the random numbers")
    flags.add_argument("--max-tokens", type=int, default=300, help="length of a reply at most")
    ends = "where a reply ends (default: turn for the built-in stories, paragraph for other text); length: only at --max-tokens"
    flags.add_argument("--stop", choices=STOPS, default="", help=ends)
    flags.add_argument("--pace", type=float, default=0.0, help="tokens per second at most, to watch the brain; 0 is no limit")
    learns = "learn from what you write, or from the replies as well (turn), by bounded steps that /unlearn takes back"
    flags.add_argument("--learn-online", nargs="?", const="message", default="", choices=("message", "turn"), help=learns)
    flags.add_argument("--plain", action="store_true", help="lines of text instead of a screen, also on a terminal that can draw one")
    add_neuron_flag(flags)
    add_backend_flag(flags)
    return flags


@command("chat")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.run and args.auto_load_latest:
        raise ConfigError(f"--auto-load-latest and {args.run} both name a run; leave one out")
    if args.max_tokens < 1:
        raise ConfigError(f"--max-tokens: at least 1, not {args.max_tokens}")
    from .storage.run_folder import find_checkpoint
    from .ui import can_draw

    folder, passed_over = find_checkpoint(args.run, args.out)  # raises for a wrong name before the screen opens
    for sentence in passed_over:
        print(f"neurogen: {sentence}", file=sys.stderr)
    if args.prompt is None and not args.plain and sys.stdin.isatty() and can_draw():
        return _on_a_screen(args, folder)
    return _as_lines(args, folder)


def _conversation(args, folder: Path, watched: bool):
    from .inference.conversation import Conversation, Settings
    from .inference.generation import Sampling
    from .show import load

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    settings = Settings(sampling, args.max_tokens, args.stop, args.pace, args.learn_online)
    return Conversation(load(folder, backend_of(args), named_neurons(args.assignments)), folder, settings, watched)


def _another(args, view, conversation, word: str):
    """A conversation with the run that a word names, with the settings of the current one."""
    from .inference.conversation import Conversation, examples
    from .show import load
    from .storage.run_folder import find_checkpoint

    folder, passed_over = find_checkpoint(word, args.out)
    for sentence in passed_over:
        view.say(sentence)
    another = Conversation(load(folder, conversation.model.backend), folder, conversation.settings, bool(conversation.monitor))
    another.warm_up()
    view.examples = examples(another.model, another.run)
    view.say(title(another, view.examples))
    return another


def _dispatcher(args, view, conversation):
    def open_run(word):
        return _another(args, view, dispatcher.conversation, word)

    dispatcher = Dispatcher(conversation, view, open_run)
    return dispatcher


def _as_lines(args, folder):
    from .ui.chat_lines import ChatLines

    view = ChatLines(typed=args.prompt is None)
    conversation = _conversation(args, folder, watched=False)
    dispatcher, refused = _dispatcher(args, view, conversation), False
    if args.prompt is not None:
        for prompt in args.prompt:
            dispatcher.stream(conversation.reply(prompt))
        return 0
    if view.typed:
        conversation.warm_up()
        view.say(title(conversation))
    for line in view.read():
        try:
            if not dispatcher.take(line):
                break
        except NeuroGenError as error:  # unknown characters, a setting out of range: the conversation continues
            refused = True
            view.refuse(" ".join(str(error).splitlines()))
    return 2 if refused and not view.typed else 0


def _on_a_screen(args, folder):
    from rich.console import Console

    from .ui.chat_history import path
    from .ui.chat_screen import ChatScreen

    def open_chat(screen):
        from .inference.conversation import examples

        conversation = _conversation(args, folder, watched=True)
        tried = examples(conversation.model, conversation.run)
        return _dispatcher(args, screen, conversation), title(conversation, tried), tried

    screen = ChatScreen(folder.parent.parent.name or folder.name, open_chat, args.out, path())
    try:
        screen.run()
    finally:
        if len(screen.entries) > 1:
            screen.print_transcript(Console())
    if screen.worker.is_alive():  # a kernel is being compiled, which cannot be interrupted
        sys.stdout.flush()
        os._exit(0)
    return 0


def title(conversation, examples: list[str] = ()) -> str:
    """The header of a chat: the name of the model, facts about it, whether its run has ended early, and lines to try."""
    from .show import summary_of, unfinished
    from .ui.plain import item

    facts = dict(item(str(name), value) for name, value in summary_of(conversation.model, conversation.folder).items())
    lines = ["  ".join([conversation.name, *(f"{name} {value}" for name, value in facts.items())])]
    if early := unfinished(conversation.folder, conversation.model.config):
        lines.append(early)
    if examples:
        lines.append("Try (Tab):  " + "   ".join(examples))
    return "\n".join([*lines, "/help lists the commands"])


if __name__ == "__main__":
    raise SystemExit(main())
