"""The networks of one folder side by side, on the same test clips: who is better, by how much, and what cannot be told.

print(compare("results/mine"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from d3d.messages import printable
from d3d.report import effects
from d3d.report.contrasts import evaluate, parse
from d3d.report.labels import NEEDS_DATA, contrast_label, label, number_text
from d3d.report.markdown import text
from d3d.report.regimes import PARTS
from d3d.report.stats import Interval, interval, paired_difference, proportion_interval
from d3d.study import records
from d3d.study.plan import TESTED, main_split

NOTE = "Intervals of the first table are over its test clips; training with another seed changes top-1 as well."
PARTS_NOTE = """*D3D's gain over RGB-longer and its parts, in top-1. Motion: what the teacher says of this clip; spread:
that what it says varies within a class; soft labels: what it says of the class. Over seeds: Student's t of differences
paired by seed; over seeds and clips: a bootstrap that draws both, and clips of one film together.*"""
# A difference in top-1 that one would like to see, for the number of clips that this takes.
WANTED = 0.02


class NetworkAnswers(NamedTuple):
    """The answers of one network on one test split.

    Attributes:
        arm: its arm.
        seed: of its run.
        split: the test split.
        labels: (N,), the class of each clip.
        correct: (N,), whether the network is right on each clip.
        sources: (N,), the film that each clip was cut from, as far as it is known.
        top1: with Wilson's 95 % interval over the clips.
        published: top-1 of the published network of the same arm and seed; None where there is none.
    """

    arm: str
    seed: int
    split: str
    labels: np.ndarray
    correct: np.ndarray
    sources: np.ndarray
    top1: Interval
    published: float | None

    @property
    def name(self) -> str:
        return label(self.arm)


def network_answers(results: str | Path, published: str | Path | None = None) -> list[NetworkAnswers]:
    """Reads the answers of every network and ensemble of a folder, sorted by split and seed.

    Args:
        results: working folder with the arrays beside its records.
        published: a study to look up the published top-1 in; None for none.
    """
    reference = {(r.experiment, r.arm, r.seed): r.metrics for r in (records.read_all(published) if published else ())}
    answers = []
    for record in records.read_all(results, (*TESTED, "fuse")):
        arrays = records.read_arrays(results, record)
        metrics = reference.get((record.experiment, record.arm, record.seed), {})
        for split in (name.removeprefix("labels/") for name in arrays if name.startswith("labels/")):
            labels = arrays[f"labels/{split}"]
            correct = arrays[f"logits/{split}"].argmax(1) == labels
            top1 = proportion_interval(int(correct.sum()), len(correct))
            theirs = metrics.get(f"{split}/top1")
            sources = arrays.get(f"sources/{split}", np.arange(len(labels)))
            answers.append(NetworkAnswers(record.arm, record.seed, split, labels, correct, sources, top1, theirs))
    return sorted(answers, key=lambda network: (network.split, network.seed))


def undetectable_differences(networks: Sequence[NetworkAnswers]) -> list[str]:
    """Says which differences in top-1 are smaller than the test clips can show: a sentence per test set and seed.

    A network is compared with the best network on the same clips: the difference is too small where the interval of
    `paired_difference` contains zero. A published network has no clips to pair with: the difference is too small where
    its top-1 lies within Wilson's interval of the network here.
    """
    groups: dict[tuple, list[NetworkAnswers]] = {}
    for network in networks:
        groups.setdefault((network.split, network.seed, network.labels.tobytes()), []).append(network)
    sentences = []
    for (split, seed, _), group in groups.items():
        best = max(group, key=lambda network: network.top1.mean)
        n = best.top1.n
        pairs = [(other.name, paired_difference(other.correct, best.correct)) for other in group if other is not best]
        to_best = [f"{name} {number_text(d, signed=True)}" for name, d in pairs if d.low <= 0 <= d.high]
        to_published = [
            f"{network.name} {network.top1.mean - network.published:+.3f}".replace("-", "−")
            for network in group
            if network.published is not None and network.top1.low <= network.published <= network.top1.high
        ]
        compared = {f"the best network, {best.name}": to_best, "the published networks": to_published}
        sentences += [
            f"{text(split)}, seed {seed}: {n} clips (one clip is {1 / n:.2g}) are too few to tell these from "
            f"{reference}: {'; '.join(close)}."
            for reference, close in compared.items()
            if close
        ]
    return sentences


def no_better_than_one_class(networks: Sequence[NetworkAnswers]) -> str:
    """Names the networks that are not shown to be better than always answering the largest class; empty for none.

    A network is better where Wilson's interval of its top-1 lies above the share of that class among the test clips.

    Args:
        networks: tested on one split.
    """
    weak: dict[str, list[int]] = {}
    for network in networks:
        if network.top1.low <= np.bincount(network.labels).max() / len(network.labels):
            weak.setdefault(network.name, []).append(network.seed)
    if not weak:
        return ""
    labels = networks[0].labels
    largest, total = int(np.bincount(labels).max()), len(labels)
    names = ", ".join(f"{text(name)} (seed {', '.join(map(str, seeds))})" for name, seeds in weak.items())
    return (
        f"{text(networks[0].split)}: the largest class has {largest} of the {total} clips ({largest / total:.3f}). Not "
        f"shown to be better than always naming it: {names}."
    )


def power(networks: Sequence[NetworkAnswers]) -> str:
    """Says what difference between D3D and RGB-longer the test clips could show; empty without the two.

    From how often only one of the two is right, as a mean over seeds (`effects.detectable_on_clips`).

    Args:
        networks: tested on one split.
    """
    pairs = _same_clips(networks, ("d3d", "rgb_longer"))
    if not pairs:
        return ""
    n = len(pairs[0]["d3d"])
    share = float(np.mean([np.mean(pair["d3d"] != pair["rgb_longer"]) for pair in pairs]))
    shown, wanted = effects.detectable_on_clips(share, n), effects.clips_to_detect(share, WANTED)
    return (
        f"{text(networks[0].split)}: only one of D3D and RGB-longer is right on {share:.3f} of the clips. With {n} "
        f"clips a true difference of {shown:.3f} in top-1 is found with a probability of 80 %; one of {WANTED:g} would "
        f"take {wanted:,} clips."
    )


def parts_of_gain(networks: Sequence[NetworkAnswers]) -> pd.DataFrame:
    """Tabulates D3D's gain in top-1 and its parts, as `regimes.PARTS` defines them.

    Args:
        networks: tested on one split.

    Returns:
        One row per part whose networks were tested on the same clips: the part, its contrast, the number of seeds, and
        the mean with its interval over seeds, and over seeds and clips.
    """
    rows = []
    for part, contrast in PARTS.items():
        parsed = parse(contrast)
        per_seed = _same_clips(networks, tuple(parsed.arms.values()))
        if not per_seed:
            continue
        values = [evaluate(parsed, {arm: pd.Series(x.astype(float)) for arm, x in seed.items()}) for seed in per_seed]
        differences = np.stack([np.asarray(x) for x in values])
        over_clips = effects.over_seeds_and_sources([(differences, networks[0].sources)])
        rows.append(
            {
                "part": part,
                "difference": contrast_label(contrast),
                "seeds": len(differences),
                "over seeds": number_text(interval(differences.mean(1)), signed=True),
                "over seeds and clips": number_text(over_clips, signed=True),
            }
        )
    return pd.DataFrame(rows)


def _same_clips(networks: Sequence[NetworkAnswers], arms: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Whether each network is right on each clip, by arm: one entry per seed that has all of the arms.

    Only seeds that were tested on the same clips as the first.
    """
    by_seed: dict[int, dict[str, NetworkAnswers]] = {}
    for network in networks:
        if network.arm in arms:
            by_seed.setdefault(network.seed, {})[network.arm] = network
    complete = [seed for seed in by_seed.values() if len(seed) == len(set(arms))]
    clips = {n.labels.tobytes() for seed in complete[:1] for n in seed.values()}
    same = [seed for seed in complete if {n.labels.tobytes() for n in seed.values()} == clips and len(clips) == 1]
    return [{arm: network.correct for arm, network in seed.items()} for seed in same]


def compare(results: str | Path, published: str | Path | None = None) -> str:
    """Compares the top-1 of every network and ensemble of a folder on every test split.

    Args:
        results: working folder with the arrays beside its records.
        published: a study whose networks of the same arm and seed get a column beside; None for none.

    Returns:
        A Markdown table with Wilson's 95 % interval over the test clips, and below it what the test clips are too few
        to tell. For the main test split (`plan.main_split`) also which networks are no better than the largest class,
        what difference could have been seen, and the parts of D3D's gain, if its controls are there.

    Raises:
        FileNotFoundError: there is no network in `results`, or no record in `published`.
        ValueError: `results` is a published study.
    """
    if records.is_archive(results):
        raise ValueError(f"{printable(results)} is published without logits: give the folder of a study that ran here")
    if published and not records.read_all(published):
        raise FileNotFoundError(
            f"no records at {printable(published)}: give a published .jsonl file or a folder that runs wrote"
        )
    networks = network_answers(results, published)
    if not networks:
        raise FileNotFoundError(
            f"no networks under {printable(results)}: train some with `-p results {printable(results)}`"
        )
    rows = []
    for network in networks:
        row = {"network": text(network.name), "seed": network.seed, "split": text(network.split)}
        row["clips"] = network.top1.n
        row["top-1"] = f"{network.top1.mean:.3f} [{network.top1.low:.3f}, {network.top1.high:.3f}]"
        if published:
            row["published"] = NEEDS_DATA if network.published is None else f"{network.published:.3f}"
        rows.append(row)
    lines = [pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), ""]
    split = main_split(dict.fromkeys(network.split for network in networks))
    judged = [network for network in networks if network.split == split]
    remarks = [no_better_than_one_class(judged), *undetectable_differences(networks), power(judged), NOTE]
    lines += [f"- {remark}" for remark in remarks if remark]
    parts = parts_of_gain(judged)
    if len(parts):
        lines += ["", parts.to_markdown(index=False, disable_numparse=True), "", PARTS_NOTE]
    return "\n".join(lines)
