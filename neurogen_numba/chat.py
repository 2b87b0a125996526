"""`neurogen chat`: a conversation with a trained model. What was said lives in the state of its neurons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .errors import ConfigError


def parser() -> Parser:
    flags = Parser("chat")
    flags.add_argument("run", nargs="?", help="a run, RUN@best, or a checkpoint (default: the run trained last)")
    flags.add_argument("--auto-load-latest", action="store_true", help="take the run trained last, as happens without RUN")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    flags.add_argument("--temperature", type=float, default=0.5, help="how freely words are drawn; 0 takes the most probable")
    flags.add_argument("--top-k", type=int, default=0, help="draw from the K most probable tokens; 0 is all")
    flags.add_argument("--top-p", type=float, default=0.95, help="draw from the most probable tokens that together have this probability")
    flags.add_argument("--seed", type=int, default=0, help="of the random numbers")
    flags.add_argument("--max-tokens", type=int, default=300, help="length of a reply at most")
    add_backend_flag(flags)
    return flags


@command("chat")
def main(argv=None):
    args = parser().parse_args(argv)
    if args.run and args.auto_load_latest:
        raise ConfigError(f"--auto-load-latest and {args.run} both name a run; leave one out")
    if args.max_tokens < 1:
        raise ConfigError(f"--max-tokens: at least 1, not {args.max_tokens}")
    from .generation import Sampling, Session
    from .show import find, load, summary_of

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    folder = find(args.run, args.out)
    model = load(folder, backend_of(args))

    from .ui.chat_screen import ChatScreen, parse_command

    screen = ChatScreen(folder.parent.parent.name or folder.name, summary_of(model, folder))
    session = Session(model, sampling)
    talk = Talk(session, args.max_tokens)
    while (line := screen.read()) is not None:
        try:
            asked = parse_command(line)
            if asked is None:
                if line.strip():
                    screen.stream(talk.reply(line))
                continue
            name, value = asked
            if name == "quit":
                break
            if name == "help":
                screen.help()
            elif name == "reset":
                session.reset()
                screen.say("forgotten")
            else:
                session.sampling = dataclasses.replace(session.sampling, **{name: value})
                screen.say(f"{name} {value}")
        except ConfigError as error:  # a word that the model cannot read, a setting out of range: the conversation goes on
            screen.say(str(error))
    return 0


class Talk:
    """Turns of a conversation, worded as the model learned them: the built-in stories know "You:" and "Neo:", other text is continued."""

    def __init__(self, session, length: int):
        self.session, self.length = session, length
        self._scripted = not session.model.config.text.data

    def reply(self, line: str) -> Iterator[str]:
        """The reply to a line, piece by piece. Raises ConfigError at once for a line that the model cannot read."""
        from .generation import stream

        tokenizer = self.session.model.tokenizer
        prompt, stop = (f"You: {line.strip()}\nNeo:", "\n") if self._scripted else (f"{line}\n", "\n\n")
        heard = tokenizer.decode(self.session.last_tokens)
        if heard and not heard.endswith("\n"):
            prompt = "\n" + prompt  # the last reply was cut off before its end
        tokenizer.encode(prompt)
        return stream(self.session, tokenizer, prompt, self.length, stop)


if __name__ == "__main__":
    raise SystemExit(main())
