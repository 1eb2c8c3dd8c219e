"""The command line, `d3d`: everything that is not a notebook.

d3d train --config run.yaml        # train or distil one network
d3d data --dataset folder --root DIR
d3d COMMAND --help
"""

import sys
from importlib import import_module

COMMANDS = {
    "train": ("d3d.train.command", "train or distil one network"),
    "data": ("d3d.data.command", "check which videos of a data set exist and are complete, and write a table of them"),
    "flow": ("d3d.flow.extract", "compute TV-L1 flow of all videos of a data set and write it to a flow cache"),
    "convert": ("d3d.s3dg.weights", "convert the authors' checkpoints to safetensors"),
    "predict": ("d3d.s3dg.predict", "print the five most probable classes of a video"),
    "detection": ("d3d.detection.command", "score a file of detections by AVA's frame mAP"),
    "records": ("d3d.study.archive", "print a run's record in one line, or pack a folder of records into one file"),
    "profile": ("d3d.study.profiles", "print a profile with everything it extends, for papermill's -f"),
    "report": ("d3d.report.pages", "print verdicts and comparisons, or write the book's generated pages"),
}
USAGE = "usage: d3d COMMAND …\n\n" + "\n".join(f"  {name:<10}{help}" for name, (_, help) in COMMANDS.items())


def main(argv: list[str] | None = None) -> None:
    """Runs a command, importing only its module; `argv` defaults to the process's arguments."""
    name, *args = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\n`d3d COMMAND --help` describes its arguments.")
        return
    if name not in COMMANDS:
        sys.exit(f"no command {name!r}, but {', '.join(COMMANDS)}; `d3d --help` describes them")
    import_module(COMMANDS[name][0]).main(args)


if __name__ == "__main__":
    main()
