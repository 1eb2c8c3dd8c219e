import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d3d.train.losses import DISTANCES, get_distance, kl, mse, relations


def test_mse_by_hand():
    losses = mse(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 1.0]]))
    assert losses.tolist() == pytest.approx([(1 + 4) / 2, 1 / 2])


def test_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(9.0), 0.0]])
    # Teacher (.9, .1), student (.5, .5), in nats, at temperature 1.
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert kl(student, teacher, temperature=1.0).tolist() == pytest.approx([expected], rel=1e-6)
    distance = get_distance("kl", temperature=1.0)
    assert distance.function(student, teacher).tolist() == pytest.approx([expected], rel=1e-6)


def test_relations_by_hand():
    """Two clips: to the student they are unrelated, to the teacher the second is the first doubled."""
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    # Rows of likeness: (1, 0) and (0, 1); twice (1, 2) / √5.
    expected = [(1 - 1 / 5**0.5) ** 2 + 4 / 5, 1 / 5 + (1 - 2 / 5**0.5) ** 2]
    assert relations(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(relations(7 * student, teacher), relations(student, teacher))


@given(st.integers(0, 99))
def test_relations_do_not_depend_on_the_order_of_clips_or_channels(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.rand(6, 4, generator=generator), torch.rand(6, 9, generator=generator)
    order, channels = torch.randperm(6, generator=generator), torch.randperm(9, generator=generator)
    shuffled = relations(student[order], teacher[order][:, channels])
    assert torch.allclose(shuffled, relations(student, teacher)[order], atol=1e-6)


def test_temperature_keeps_the_size_of_the_gradient():
    teacher = torch.tensor([[0.02, 0.0, -0.01]])
    gradients = []
    for temperature in (2.0, 20.0):
        student = torch.zeros(1, 3, requires_grad=True)
        kl(student, teacher, temperature=temperature).sum().backward()
        gradients.append(student.grad.norm().item())
    assert gradients[0] == pytest.approx(gradients[1], rel=0.05)


@pytest.mark.parametrize("name", list(DISTANCES))
@given(values=st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_a_distance_is_zero_at_the_teacher_and_not_negative(name, values):
    teacher = torch.tensor([values], dtype=torch.float64)
    function = DISTANCES[name].function
    assert function(teacher, teacher).item() == pytest.approx(0, abs=1e-9)
    assert function(teacher.flip(1), teacher) >= -1e-9
