"""The plan of a profile: its arms, their teachers and initial weights, and the seeds of each record."""

import pytest

from d3d.report import labels
from d3d.study import arms, plan
from d3d.study.arms import ARMS, Arm
from d3d.study.profiles import read_profile

PROFILE = {
    "seeds": [0, 1, 2, 3, 4],
    "examined_seeds": [1, 3],
    "ablation_seeds": [0, 1],
    "arms": ["rgb", "rgb_twin", "flow", "rgb_longer", "rgb_teacher", "d3d"],
    "ablations": ["flow_exact", "d3d_exact", "d3d_scratch", "d3d_kl", "d3d_lambda_0.1", "d3d_lambda_3"],
    "epochs": 24,
    "learning_rate": 0.1,
    "students": {"epochs": 12, "learning_rate": 0.05},
    "overrides": {"rgb_teacher": {"lambda_": 0.2}, "d3d_kl": {"lambda_": 0.5}},
}


def overrides(arm, seed=0, experiment="distill"):
    return plan.overrides(experiment, arm, seed, profile=PROFILE, results="r")


def test_a_student_gets_its_teacher_and_initial_weights():
    assert overrides("d3d", 1)["teacher"] == "r/train/flow-seed1.safetensors"
    assert overrides("d3d", 1)["student"] == "r/train/rgb-seed1.safetensors"
    assert overrides("rgb_teacher", 2)["teacher"] == "r/train/rgb_twin-seed2.safetensors"
    assert overrides("rgb_teacher", 2)["lambda_"] == 0.2
    assert overrides("rgb_longer") == {
        "results": "r",
        "seed": 0,
        "arm": "rgb_longer",
        "stream": "rgb",
        "student": "r/train/rgb-seed0.safetensors",
        "outputs": "clip",
        "lambda_": 0.0,
        "epochs": 12,
        "learning_rate": 0.05,
    }


def test_a_student_starts_from_the_network_of_a_source_or_from_its_weights():
    profile = PROFILE | {"sources": {"k400": "results/other", "k600": "RGB_K600.safetensors"}}

    def student(arm):
        return plan.overrides("distill", arm, 3, profile=profile, results="r")

    assert student("rgb_k400_s1")["student"] == "results/other/train/rgb-seed3.safetensors"
    assert student("d3d_source_k400_s1")["student"] == "results/other/distill/d3d-seed3.safetensors"
    assert student("rgb_longer_k400_s1")["student"] == "results/other/distill/rgb_longer-seed3.safetensors"
    assert student("d3d_k600_s2")["student"] == "RGB_K600.safetensors"
    # The teacher is the flow stream of the same split of this study, and only D3D has one.
    assert student("d3d_k600_s2")["teacher"] == "r/train/flow_s2-seed3.safetensors"
    assert (student("d3d_k600_s2")["split"], student("d3d_k600_s2")["epochs"]) == (2, 12)
    assert student("d3d_source_k400_s1")["lambda_"] == 0


def test_an_arm_of_all_splits_is_shown_as_that_of_one_without_its_number():
    assert labels.label("d3d_source_k400_s2") == "source's D3D from K400, split 2"
    assert labels.label("d3d_source_k400") == "source's D3D from K400"
    assert labels.colour("rgb_k600") == ARMS["rgb"].colour
    assert labels.label("d3d_d3d") == "D3D + D3D"
    assert labels.label("mine") == "mine"


def test_an_ablation_changes_one_thing_of_d3d():
    d3d = overrides("d3d")

    def changed(arm):
        params = overrides(arm)
        return {k: params.get(k) for k in {*d3d, *params} - {"arm"} if params.get(k) != d3d.get(k)}

    # Overrides of the profile take precedence over those of the arm.
    assert changed("d3d_kl") == {"distance": "kl", "lambda_": 0.5}
    assert changed("d3d_features") == {"distance": "features", "lambda_": 50.0}
    assert changed("d3d_activations_4b") == {"distance": "activations", "layer": "Mixed_4b", "lambda_": 1.0}
    assert changed("d3d_exact") == {"flow": "exact", "teacher": "r/train/flow_exact-seed0.safetensors"}
    assert changed("d3d_lambda_0.1") == {"lambda_": 0.1}
    # As many epochs as a stream and its student together, with the learning rate of a stream.
    assert changed("d3d_scratch") == {"student": "", "epochs": 36, "learning_rate": None}
    flow = overrides("flow", experiment="train")
    assert overrides("flow_exact", experiment="train") == flow | {"arm": "flow_exact", "flow": "exact"}


def test_a_twin_differs_only_in_its_random_draws():
    rgb, twin = (overrides(arm, 4, "train") for arm in ("rgb", "rgb_twin"))
    assert twin == rgb | {"arm": "rgb_twin", "twin": 1}


def test_the_arms_of_an_experiment_follow_from_the_profile():
    assert plan.arms_of("train", PROFILE) == ("rgb", "rgb_twin", "flow", "flow_exact")
    assert plan.arms_of("distill", PROFILE)[-2:] == ("d3d_lambda_0.1", "d3d_lambda_3")
    assert set(plan.arms_of("fuse", PROFILE)) == {
        *("two_stream", "two_stream_logits", "longer_flow", "longer_flow_logits", "rgb_rgb", "rgb_rgb_logits"),
        *("d3d_rgb", "d3d_d3d"),
    }
    assert set(plan.arms_of("compare", PROFILE)) == {
        name for e in plan.TRAINED for name in plan.arms_of(e, PROFILE) if ARMS[name].stream == "rgb"
    }
    assert plan.arms_of("probe", PROFILE) == ("random", "rgb", "flow", "rgb_longer", "rgb_teacher", "d3d", "tuned")
    few = PROFILE | {"arms": ["rgb", "flow", "d3d"], "ablations": []}
    assert set(plan.arms_of("fuse", few)) == {"two_stream", "two_stream_logits", "d3d_rgb", "d3d_d3d"}
    assert plan.arms_of("compare", few) == ()  # RGB-longer is lacking
    assert plan.arms_of("attribution", few) == ("random", "rgb", "flow", "d3d")
    assert plan.arms_of("detect", few) == ("random", "rgb", "flow", "d3d", "two_stream")
    assert plan.arms_of("detect", few | {"arms": ["rgb", "rgb_longer"]}) == ("random", "rgb", "rgb_longer")
    assert plan.made_from("detect", "two_stream") == {"members": ["rgb", "flow"]}
    assert plan.made_from("detect", "d3d") == {}
    assert plan.weights_path("r", "d3d_lambda_3", 1) == "r/distill/d3d_lambda_3-seed1.safetensors"


def test_ablations_have_their_own_seeds():
    assert plan.seeds_of("distill", PROFILE, name="d3d_lambda_3") == [0, 1]
    assert plan.seeds_of("distill", PROFILE, name="d3d") == [0, 1, 2, 3, 4]
    assert plan.seeds_of("train", PROFILE, name="flow_exact") == [0, 1]


def test_ensembles_of_two_seeds_share_no_network():
    assert plan.seeds_of("fuse", PROFILE, name="d3d_d3d") == [0, 2]
    assert plan.seeds_of("fuse", PROFILE, name="two_stream") == [0, 1, 2, 3, 4]
    assert plan.seeds_used("d3d_d3d", 2) == {2, 3}
    assert plan.seeds_used("d3d_rgb", 2) == {2}
    assert plan.seeds_of("attribution", PROFILE) == [1, 3]
    assert plan.seeds_of("leak", PROFILE) == [1, 3]
    assert plan.seeds_of("tvl1", PROFILE) == [0]


def test_the_flow_head_has_no_teacher_but_a_partner():
    own, partner = overrides("flow_head"), overrides("flow_head_shuffled")
    assert own == overrides("rgb_longer") | {"arm": "flow_head", "distance": "flow_field", "lambda_": 1.0}
    assert partner == own | {"arm": "flow_head_shuffled", "outputs": "shuffled"}
    assert plan.needs_flow("flow_head")
    assert plan.arm_name("distill", own | {"arm": ""}) == "flow_head"
    assert plan.arm_name("distill", partner | {"arm": ""}) == "flow_head_shuffled"


def test_two_teachers_teach_one_student():
    d3d, unseen = overrides("d3d", 2), overrides("d3d_unseen", 2)
    assert unseen == d3d | {
        "arm": "d3d_unseen",
        "teacher": "r/train/flow_half_1-seed2.safetensors",
        "second_teacher": "r/train/flow_half_2-seed2.safetensors",
        "lambda_": 3.0,
    }
    assert overrides("d3d_unseen_shuffled", 2) == unseen | {"arm": "d3d_unseen_shuffled", "outputs": "shuffled"}
    flow = overrides("flow", 2, experiment="train")
    assert overrides("flow_half_2", 2, experiment="train") == flow | {"arm": "flow_half_2", "half": 2}
    assert plan.flow_teacher("d3d_unseen") == "flow"


def test_an_arm_of_unlabelled_clips_changes_their_number_and_its_weight():
    unlabelled = overrides("d3d_unlabelled")
    assert unlabelled == overrides("d3d") | {"arm": "d3d_unlabelled", "unlabelled_clips": 16_000, "lambda_": 3.0}


def test_pictures_are_saved_for_one_seed():
    assert "pictures" not in overrides("", 1, "probe")
    assert overrides("", 3, "probe")["pictures"] == 0


def test_an_unknown_arm_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no arm 'd4d': did you mean d3d\?"):
        plan.weights_path("r", "d4d", 0)


def test_the_main_student_follows_from_the_teacher():
    params = {"lambda_": 3.0, "teacher": "r/train/rgb_twin-seed100.safetensors"}
    assert plan.main_student(params) == "rgb_teacher"
    assert plan.main_student(params | {"teacher": "r/train/flow-seed100.safetensors"}) == "d3d"
    assert plan.main_student(params | {"lambda_": 0.0}) == "rgb_longer"


@pytest.mark.parametrize("arm", ARMS.values(), ids=list(ARMS))
def test_an_arm_refers_only_to_existing_arms(arm):
    for name in (arm.start, arm.teacher, arm.second_teacher, *arm.members):
        assert not name or name in ARMS
    assert bool(arm.members) == (arm.experiment == "fuse")
    assert not arm.teacher or arm.experiment == "distill"


def test_arms_of_one_figure_look_different():
    """Variants of D3D are excepted, because figures show them in separate rows.

    An ensemble has one colour and two markers, one per way of fusing it.
    """
    main = [arm for arm in ARMS.values() if arm.name in PROFILE["arms"] or arm.experiment == "probe"]
    drawn = [*main, *(ARMS[name] for name in plan.arms_of("fuse", PROFILE))]
    assert len({(arm.colour, arm.marker) for arm in drawn}) == len(drawn)
    markers = [ARMS[name].marker for name in arms.arms_examined_by("probe")]
    assert len(set(markers)) == len(markers)


def test_a_new_arm_takes_one_entry_and_one_line_of_a_profile(monkeypatch):
    new = Arm(name="d3d_rolled_0.5", label="D3D, rolled", overrides={"temperature": 2.0}, **arms.D3D)
    monkeypatch.setitem(ARMS, new.name, new)
    profile = PROFILE | {"ablations": [*PROFILE["ablations"], new.name]}
    assert plan.arms_of("distill", profile)[-1] == new.name
    assert plan.seeds_of("distill", profile, name=new.name) == [0, 1]
    params = plan.overrides("distill", new.name, 1, profile=profile, results="r")
    assert params == overrides("d3d", 1) | {"arm": new.name, "temperature": 2.0}
    assert labels.contrast_label(f"{new.name} - d3d") == "D3D, rolled − D3D"
    assert labels.colour(new.name) == ARMS["d3d"].colour


def test_only_what_sees_flow_needs_the_flow_of_a_set_of_videos(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{extends: video, root: videos}")
    profile = read_profile(path)
    needing = {name for name in profile["arms"] if plan.needs_flow(name)}
    assert needing == {"flow", "class_mean", "flow_shuffled", "d3d"}
    for name in profile["arms"]:
        params = plan.overrides(plan.get_arm(name).experiment, name, 0, profile=profile, results="results/mine")
        assert params.get("flow_cache") == ("results/mine/flow/videos" if name in needing else None)
    assert plan.flow_cache(profile | {"flow_cache": "mine"}, "results/mine") == "mine"
    # Computed at the start of each run, from clips in memory.
    assert plan.flow_cache(profile | {"repeated_frames": "drop"}, "results/mine") == ""
    assert plan.flow_cache(read_profile("notebooks/params/smoke.yaml"), "results/smoke") == ""
    # Shards have their flow beside the videos.
    assert plan.flow_cache(profile | {"dataset": "shards"}, "results/mine") == ""


def test_a_study_of_videos_has_no_experiment_that_needs_rendered_clips():
    videos = read_profile("notebooks/params/jhmdb-split1.yaml")
    assert [e for e in plan.EXAMINING if plan.arms_of(e, videos)] == ["probe", "attribution"]
    assert plan.arms_of("tvl1", videos) == ()
    assert plan.arms_of("leak", PROFILE) == plan.LEAKS
