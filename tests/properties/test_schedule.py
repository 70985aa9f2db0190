"""alpha_bar and what depends on it alone."""

from decimal import Decimal

import pytest
import torch
from golden import transcription as paper
from hypothesis import given, settings
from hypothesis import strategies as st

from zipcli.config import NoiseSchedule
from zipcli.errors import ConfigError
from zipcli.methods.steps import ddim_sigma, predict_x0
from zipcli.schedule import alpha_bars

# The table of the linear schedule. The specification prints ...739 at 249; sixty digits say 0.52408537382536.
PRINTED = {
    0: "0.9999000000",
    1: "0.9997800921",
    20: "0.9937354286",
    49: "0.9710157229",
    50: "0.9699514936",
    99: "0.8970181457",
    100: "0.8951415909",
    120: "0.8548326493",
    149: "0.7883213509",
    150: "0.7858870240",
    199: "0.6590385082",
    249: "0.5240853738",
    250: "0.5214230306",
    499: "0.0785872429",
    749: "0.0033505504",
    899: "2.7520591e-4",
    900: "2.7024452e-4",
    949: "1.0809828e-4",
    950: "1.0604183e-4",
    999: "4.0358298e-5",
}
SCHEDULES = st.builds(
    lambda first, rise, count: NoiseSchedule(
        beta_start=first, beta_end=min(first * rise, 0.05), timesteps=count
    ),
    st.floats(1e-5, 0.01),
    st.floats(1, 500),
    st.integers(1, 2000),
)


@pytest.mark.parametrize(("i", "printed"), PRINTED.items())
def test_alpha_bar_has_the_published_digits(i: int, printed: str) -> None:
    """Acceptance test 1: within half a unit of the last printed digit."""
    expected = Decimal(printed)
    half_a_unit = Decimal(5).scaleb(int(expected.as_tuple().exponent) - 1)
    assert abs(Decimal(alpha_bars(NoiseSchedule())[i].item()) - expected) <= half_a_unit


def test_alpha_bar_is_the_running_product_in_float64() -> None:
    """Tolerance 1e-12 relative: a thousand roundings of 1e-16 each, in another order."""
    table = alpha_bars(NoiseSchedule())
    assert table.dtype == torch.float64
    expected = torch.tensor(paper.linear_schedule().alpha_bar[1:], dtype=torch.float64)
    torch.testing.assert_close(table, expected, rtol=1e-12, atol=0)


@settings(max_examples=60)
@given(schedule=SCHEDULES)
def test_alpha_bar_falls_within_0_and_1(schedule: NoiseSchedule) -> None:
    table = alpha_bars(schedule)
    assert table.shape == (schedule.timesteps,)
    assert (table.diff() < 0).all()
    assert 0 < table[-1] <= table[0] < 1
    assert table[0].item() == pytest.approx(1 - schedule.beta_start, rel=1e-12)


@settings(max_examples=60)
@given(i=st.integers(0, 999), seed=st.integers(0, 2**32 - 1))
def test_predict_x0_undoes_adding_noise(i: int, seed: int) -> None:
    """Tolerance 1e-12: rounding of 1e-16 over sqrt(alpha_bar), at least 6e-3."""
    x_0, eps = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    alpha_bar = alpha_bars(NoiseSchedule())[i].item()
    x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps
    torch.testing.assert_close(predict_x0(x_t, eps, alpha_bar), x_0, rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(i=st.integers(1, 999), back=st.integers(1, 999), eta=st.floats(0, 1))
def test_a_step_never_adds_more_noise_than_the_next_state_has(i: int, back: int, eta: float) -> None:
    """0 <= sigma^2 <= 1 - alpha_bar_prev, up to rounding, and sigma is in proportion to eta."""
    table = alpha_bars(NoiseSchedule()).tolist()
    alpha_bar, alpha_bar_prev = table[i], table[max(0, i - back)]
    sigma = ddim_sigma(alpha_bar, alpha_bar_prev, eta)
    assert 0 <= sigma**2 <= 1 - alpha_bar_prev + 1e-15
    assert sigma == pytest.approx(
        eta * paper.ddim_sigma(alpha_bar, alpha_bar_prev, 1.0), rel=1e-9, abs=1e-300
    )


def test_the_step_to_the_clean_image_adds_no_noise() -> None:
    for alpha_bar in alpha_bars(NoiseSchedule()).tolist():
        assert ddim_sigma(alpha_bar, 1.0, 1.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta_start": 0.0},
        {"beta_start": 0.5, "beta_end": 0.1},
        {"beta_end": 1.0},
        {"beta_end": float("nan")},
        {"timesteps": 0},
    ],
)
def test_an_impossible_schedule_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        NoiseSchedule(**wrong)
