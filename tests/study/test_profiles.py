"""Profiles: their keys, their checks, and extending another profile."""

import pytest
import yaml

from d3d.study.experiments import EXPERIMENTS, make_config
from d3d.study.plan import arms_of
from d3d.study.profiles import locate, main, read_profile
from d3d.study.schema import ParameterError

SMALL = {"seeds": [0, 1], "arms": ["rgb", "flow"]}


def write_profile(folder, name="mine", **content):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("profile", ["smoke", "h200", "portable", "settled"])
def test_the_profiles_of_this_repository_are_valid(profile):
    content = read_profile(f"notebooks/params/{profile}.yaml")
    for name in EXPERIMENTS:
        make_config(name, content | ({"lambda_": 0.0} if name == "distill" else {}))
        assert arms_of(name, content) or name == "evaluate"  # which has weights that no profile trains


def test_the_published_study_has_the_planned_seeds():
    assert read_profile("notebooks/params/h200.yaml")["seeds"] == list(range(10))


def test_a_profile_extends_another(tmp_path):
    write_profile(tmp_path, "base", **SMALL, rho=0.25, epochs=4, students={"epochs": 2})
    write_profile(tmp_path, "middle", extends="base", epochs=5)
    profile = read_profile(write_profile(tmp_path, extends="middle", seeds=[7], students={"epochs": 3}))
    assert (profile["rho"], profile["epochs"], profile["seeds"]) == (0.25, 5, [7])
    assert profile["students"] == {"epochs": 3}
    assert profile["examined_seeds"] == [7]
    assert "extends" not in profile


def test_a_profile_that_extends_nothing_or_itself_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"mine.yaml extends 'nothing', but there is no .*nothing.yaml"):
        read_profile(write_profile(tmp_path, extends="nothing"))
    write_profile(tmp_path, "a", extends="b")
    with pytest.raises(ParameterError, match=r"b.yaml extends itself|a.yaml extends itself"):
        read_profile(write_profile(tmp_path, "b", extends="a"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALL | {"learning_rat": 0.1}, r"'learning_rat' is no parameter of any experiment .*learning_rate"),
        (SMALL | {"epochs": "x"}, "epochs must be of type int"),
        (SMALL | {"seeds": ["a"]}, "seeds must list whole numbers"),
        (SMALL | {"seeds": [0, 0]}, "seeds must list whole numbers from 0 to 999, each once"),
        (SMALL | {"seeds": [-1]}, "seeds must list whole numbers from 0 to 999"),
        (SMALL | {"examined_seeds": [[0]]}, "examined_seeds must be some of the seeds"),
        (SMALL | {"arms": [["rgb"]]}, "arms must list arms, each once"),
        (SMALL | {"arms": ["rgb", "d3d"]}, "'d3d' starts from or learns from 'flow': list that arm too"),
        (SMALL | {"overrides": 3}, "overrides must map arms to their parameters, not 3"),
        (SMALL | {"overrides": {"students": {}}}, "overrides names 'students', which is not one of the trained arms"),
        (SMALL | {"overrides": {"rgb": {"lambda_": 0.5}}}, "'lambda_' is no parameter of rgb"),
        (SMALL | {"overrides": {"rgb": {"seed": 5}}}, "'seed' is no parameter of rgb"),
        (
            SMALL | {"extends": "../x"},
            "extends must name a profile in the same folder or in notebooks/params, such as h200, not '../x'",
        ),
        ({"epochs": 3}, "seeds must list whole numbers from 0 to 999, each once, not None"),
        (SMALL | {"examined_seeds": [2]}, "examined_seeds must be some of the seeds"),
        (SMALL | {"ablation_seeds": [5]}, "ablation_seeds must be some of the seeds"),
        (SMALL | {"ablation_seeds": 0}, "ablation_seeds must be some of the seeds, not 0"),
        ({"seeds": [0]}, r"arms must list arms, each once, not \[\]"),
        (SMALL | {"arms": "rgb"}, "arms must list arms, each once, not 'rgb'"),
        (SMALL | {"arms": ["rgb", "rgb"]}, "arms must list arms, each once"),
        (SMALL | {"arms": ["rbg"]}, "arms names 'rbg', which is not one of the trained arms: did you mean rgb"),
        (SMALL | {"arms": ["two_stream"]}, "arms names 'two_stream', which is not one of the trained arms"),
        (SMALL | {"ablations": ["rgb"]}, "'rgb' is listed under both arms and ablations"),
        (SMALL | {"students": {"epoch": 3}}, "'epoch' is no parameter of students"),
        (SMALL | {"students": {"epochs": "x"}}, "epochs of students must be of type int"),
        (SMALL | {"overrides": {"d3d_kl": {"lambda": 3}}}, "'lambda' is no parameter of d3d_kl"),
        (
            SMALL | {"overrides": {"rgb_techer": {"lambda_": 3.0}}},
            "overrides names 'rgb_techer', .* trained arms: did you mean rgb_teacher or",
        ),
        (SMALL | {"overrides": {"rgb_teacher": 0.3}}, "rgb_teacher must map parameters to values, not 0.3"),
        (
            SMALL | {"arms": ["rgb_k400_s1"]},
            "'rgb_k400_s1' starts from a network of 'k400': name its folder or weights",
        ),
        (SMALL | {"arms": ["d3d_k400_s1"], "sources": {"k400": "r"}}, "'d3d_k400_s1' .* learns from 'flow_s1': list"),
        (SMALL | {"sources": {"k400": 3}}, "sources must map names to folders of results or to weights, not .*3"),
        (SMALL | {"sources": "results/other"}, "sources must map names to folders of results or to weights"),
        ([1], "must map parameters to values"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParameterError, match=message) as error:
        read_profile(path)
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: !!python/object:x {}", b"", b"- 1", b"a: 1\na: 2"])
def test_a_file_that_is_not_a_profile_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(
        ParameterError, match=r"mine.yaml (is no|has the tag|has the key|must map parameters to values)"
    ):
        read_profile(path)


def test_the_command_prints_the_merged_profile(tmp_path, capsys):
    write_profile(tmp_path, "base", **SMALL, rho=0.25)
    main([str(write_profile(tmp_path, extends="base", epochs=5))])
    merged = tmp_path / "merged.yaml"
    merged.write_text(capsys.readouterr().out)
    assert read_profile(merged) == read_profile(tmp_path / "mine.yaml")
    assert "extends" not in yaml.safe_load(merged.read_text())
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "none.yaml")])


def test_a_profile_elsewhere_is_found_by_its_path_and_extends_those_of_the_repository(tmp_path):
    path = write_profile(tmp_path, extends="video", root="videos", seeds=[5])
    assert locate(str(path)) == ("mine", path)
    profile = read_profile(path)
    assert (profile["dataset"], profile["root"], profile["seeds"]) == ("folder", "videos", [5])
    assert {"rgb_longer", "flow_shuffled", "class_mean", "d3d"} <= set(profile["arms"])
    # A profile beside it comes first.
    write_profile(tmp_path, "video", **SMALL, dataset="table")
    assert read_profile(path)["dataset"] == "table"


def test_a_profile_of_the_repository_is_found_by_its_name(tmp_path):
    assert locate("smoke")[1] == locate("notebooks/params/smoke.yaml")[1]
    with pytest.raises(
        ParameterError, match=r"/smoke\.yaml has the name of notebooks/params/smoke\.yaml, and so of its"
    ):
        locate(str(write_profile(tmp_path, "smoke", **SMALL)))
    for name in ("../smoke", "a b.yaml", ".yaml", 3, ""):
        with pytest.raises(ParameterError, match="profile must be the name of a file in notebooks/params"):
            locate(name)
