"""`atose-ray COMMAND ...`, or `python -m atose_ray COMMAND ...`: the commands under one name.

Help and shell completion come from `assets/commands.json`, so that they cost no import of PyTorch or Ray;
`python -m atose_ray commands` writes that file from the commands' own parsers, and a test holds it against them."""

import difflib
import importlib
import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from atose_ray import cli

COMMANDS = {
    "prepare": "your audio and tags -> Parquet shards",
    "doctor": "examine a prepared data set: files, splits, tags; says whether training may start",
    "train": "one training of one configuration",
    "tune": "a hyper-parameter search, resumable, here or on a cluster",
    "status": "how far a search is: trials by state, the best, rate, forecast",
    "stop": "end a search after the running epochs; the same tune command goes on",
    "rerun": "train a trial again and compare it with its record, epoch by epoch",
    "promote": "the best trials again with other seeds: is the winner better, or was it lucky?",
    "crossvalidate": "a configuration on every fold of its data set: scores, mean and spread",
    "evaluate": "score a chosen model under a named protocol, beside published figures",
    "probe": "what a small classifier finds in a model's embeddings of other data, beside controls",
    "reproduce": "what was published of the five systems, row by row, beside what this package gives",
    "report": "write a study's report.html again",
    "tag": "tag audio files with a chosen model",
    "embed": "sounds as vectors, in a Parquet file",
    "find": "sounds of a folder by words, or by another sound",
    "export": "a model for other runtimes: ONNX, torch.export",
    "serve": "models over HTTP, and a page to drop a sound on",
}
SHELLS = ("bash", "zsh")
PAGES = "commands.json"
MODULE = "python -m atose_ray."


def main(argv: list[str] | None = None) -> None:
    """Run a command; of --help print its page; of none list them. Raises ValueError for what is no command."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(overview())
    elif command == "completion":
        if rest not in [[shell] for shell in SHELLS]:
            raise ValueError(f"{cli.CONSOLE} completion takes {' or '.join(SHELLS)}; see {cli.CONSOLE} --help")
        print(completion(rest[0]))
    elif command == "commands":
        place = Path(__file__).with_name("assets") / PAGES
        place.write_text(json.dumps(pages_of_parsers(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no command {command!r}{hint} ({cli.CONSOLE} --help lists them)")
    elif {"-h", "--help"} & set(rest):
        print(stored_help(command, rest))
    else:
        importlib.import_module(f"atose_ray.{command}").main(rest)


def overview() -> str:
    """The commands, and how to begin."""
    lines = [f"  {MODULE}{command:<13} {summary}" for command, summary in COMMANDS.items()]
    return "\n".join(
        [
            "atose_ray: distributed hyper-parameter search for audio tagging\n",
            *lines,
            f"\nEach takes --help, and each is a word of {cli.CONSOLE} too: {cli.CONSOLE} tune mtat",
            f'Completion: eval "$({cli.CONSOLE} completion bash)" in ~/.bashrc; of zsh: completion zsh in ~/.zshrc',
            f"To begin: {MODULE}prepare demo && {MODULE}tune demo",
        ]
    )


def stored_pages() -> dict[str, dict[str, Any]]:
    """Command -> its help, its options, and the words that may follow an option; "" is for the arguments."""
    content = resources.files("atose_ray").joinpath(f"assets/{PAGES}").read_text(encoding="utf-8")
    return dict(json.loads(content))


def stored_help(command: str, rest: list[str]) -> str:
    """The page of a command that is followed by these words."""
    pages = stored_pages()
    return str(pages.get(f"{command} {rest[0]}", pages[command])["help"])


def help_page(command: str, rest: list[str]) -> str | None:
    """The same as `python -m atose_ray.COMMAND` shows it; None for what is no command."""
    return stored_help(command, rest).replace(f"{cli.CONSOLE} ", MODULE) if command in COMMANDS else None


def pages_of_parsers() -> dict[str, dict[str, Any]]:
    """What `stored_pages` should give. Imports every command."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        return {name: page for command in COMMANDS for name, page in pages_of(command).items()}
    finally:
        del os.environ["COLUMNS"]
        os.environ.update({} if before is None else {"COLUMNS": before})


def pages_of(command: str) -> dict[str, dict[str, Any]]:
    """Those of one command."""
    pages = {}
    module = importlib.import_module(f"atose_ray.{command}")
    parsers = {command: module.arguments()}
    if hasattr(module, "index_arguments"):
        parsers[f"{command} index"] = module.index_arguments()
    for name, parser in parsers.items():
        actions = parser._actions
        pages[name] = {
            "help": parser.format_help().replace(MODULE, f"{cli.CONSOLE} ").rstrip(),
            "options": sorted(option for action in actions for option in action.option_strings),
            "words": {
                option: [str(word) for word in action.choices]
                for action in actions
                if action.choices
                for option in action.option_strings or [""]
            },
        }
    return pages


def completion(shell: str) -> str:
    """A script that a shell reads at its start: commands, their options, words and files."""
    cases = []
    for command in COMMANDS:
        page = stored_pages()[command]
        words = {"*": page["words"].get("", []), **{name: of for name, of in page["words"].items() if name}}
        follow = "".join(f' {name}) words="{" ".join(words[name])}" ;;' for name in sorted(words, reverse=True))
        cases.append(f'    {command}) options="{" ".join(page["options"])}"; case "$before" in{follow} esac ;;')
    lines = [
        *(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []),
        "_atose_ray() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD - 1]}" options="" words=""',
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} completion --help" -- "$current"))',
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        f'    completion) words="{" ".join(SHELLS)}" ;;',
        "  esac",
        '  case "$current" in',
        '    -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;',
        '    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;',
        "  esac",
        "}",
        f"complete -o default -F _atose_ray {cli.CONSOLE}",  # default: file names where nothing fits
    ]
    return "\n".join(lines)


def console() -> None:
    """What the console command of pyproject.toml calls."""
    cli.run(main)


if __name__ == "__main__":
    console()
