"""One command for all that is no notebook.

d3d train --config run.yaml        # train or distil one network
d3d data --dataset folder --root DIR
d3d COMMAND --help
"""

import sys
from importlib import import_module

COMMANDS = {
    "train": ("d3d.train.command", "train or distil one network"),
    "data": ("d3d.data.command", "what of a set of videos is there, and whole; a table of it"),
    "flow": ("d3d.flow.extract", "TV-L1 flow of a whole set of videos"),
    "convert": ("d3d.s3dg.weights", "the authors' checkpoints as safetensors"),
    "predict": ("d3d.s3dg.predict", "the five likeliest classes of a video"),
    "records": ("d3d.study.archive", "records of runs: show one, or pack a folder for publication"),
    "profile": ("d3d.study.profiles", "a profile with all that it extends, as papermill's -f takes it"),
    "report": ("d3d.report.pages", "verdicts, comparisons and the book's generated pages"),
}
USAGE = "usage: d3d COMMAND …\n\n" + "\n".join(f"  {name:<10}{help}" for name, (_, help) in COMMANDS.items())


def main(argv: list[str] | None = None) -> None:
    """Runs a command on its arguments; each is imported only when it is asked for."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\n`d3d COMMAND --help` says what it takes.")
        return
    if name not in COMMANDS:
        sys.exit(f"no command {name!r}\n{USAGE}")
    import_module(COMMANDS[name][0]).main(rest)


if __name__ == "__main__":
    main()
