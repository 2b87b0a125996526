"""The watchdog: each rule with numbers that must set it off, with numbers that must not, and once only."""

import math

import pytest

from neurogen_numba.config import MODULES
from neurogen_numba.learning import watchdog as rules
from neurogen_numba.learning.report import Notice, StepReport
from neurogen_numba.learning.watchdog import Watchdog


def step(number, norm=1.0, loss=3.0, **activity):
    shares = {**dict.fromkeys(MODULES, 0.05), **activity}
    return StepReport(number, 100, number * 64, loss, 0.2, 2.0, 1e-3, norm, 1000.0, 1.0, shares)


def warned(watchdog, reports):
    """The texts of all notices, in order."""
    notices = [notice for report in reports for notice in watchdog.step(report)]
    assert all(isinstance(notice, Notice) and notice.text.startswith("warning: ") for notice in notices)
    return [notice.text.removeprefix("warning: ") for notice in notices]


def test_a_healthy_run_is_left_alone():
    watchdog = Watchdog()
    assert warned(watchdog, [step(number, norm=1 + number % 3) for number in range(100)]) == []
    assert [watchdog.loading(0.4, 10) for _ in range(10)] == [[]] * 10
    assert [watchdog.saved(1.0, 2.0), watchdog.saved(60.0, 3600.0)] == [[], []]


def test_a_silent_module_is_named_once():
    reports = [step(number, pfc=0.0) for number in range(1, 20)]
    (text,) = warned(Watchdog(), reports)
    assert text.startswith(f"pfc is silent: no event in the last {rules.PATIENCE} reports, up to step {rules.PATIENCE};")
    assert warned(Watchdog(), [step(number, pfc=0.0) for number in range(1, rules.PATIENCE)]) == []
    assert warned(Watchdog(), [step(number, pfc=1e-5) for number in range(1, 20)]) == []


def test_silence_has_to_last():
    assert warned(Watchdog(), [step(number, pfc=0.0 if number % rules.PATIENCE else 0.01) for number in range(1, 50)]) == []


def test_each_silent_module_is_a_cause_of_its_own():
    texts = warned(Watchdog(), [step(number, pfc=0.0, broca=0.0) for number in range(1, 20)])
    assert [text.split()[0] for text in texts] == ["pfc", "broca"]


def test_a_saturated_module_is_named_once():
    (text,) = warned(Watchdog(), [step(number, wernicke=0.8) for number in range(1, 20)])
    assert text.startswith(f"wernicke is saturated: 80 % of its neurons have an event per token at step {rules.PATIENCE};")
    assert warned(Watchdog(), [step(number, wernicke=rules.SATURATED) for number in range(1, 20)]) == []


def test_a_rising_validation_loss_is_reported_once():
    watchdog = Watchdog()
    losses = [5.0, 4.0, 4.5, 3.9, 4.0, 3.99, 4.1, 4.2, 9.0]  # one bad look is nothing, nor is what lies a little above the best
    output = [watchdog.evaluated(100 * number, loss) for number, loss in enumerate(losses)]
    assert [len(notices) for notices in output] == [0] * 7 + [1, 0]
    assert output[7][0].text.startswith("warning: the loss of held-out text rises: 4.20 nats at step 700, 3.90 before")


@pytest.mark.parametrize("norm", [rules.EXPLODED * 2.1, math.inf])
def test_a_gradient_far_above_the_usual_is_named_once(norm):
    usual = [step(number, norm=2.0) for number in range(1, 12)]
    (text,) = warned(Watchdog(), [*usual, step(12, norm=norm), step(13, norm=norm)])
    assert "the gradient explodes" in text and "at step 12" in text and "times the usual 2;" in text


def test_a_large_gradient_is_no_explosion_where_it_is_usual_or_little_is_known():
    assert warned(Watchdog(), [step(number, norm=rules.EXPLODED * 2.0 if number == 12 else 2.0) for number in range(1, 30)]) == []
    assert warned(Watchdog(), [step(1, norm=1.0), step(2, norm=1e6)]) == []
    assert warned(Watchdog(), [step(number, norm=1.05**number) for number in range(1, 60)]) == []


def test_few_norms_are_enough_to_tell_an_explosion():
    norms = [*[1.0] * rules.FEWEST_NORMS, 2.0 * rules.EXPLODED]
    assert len(warned(Watchdog(), [step(number, norm=norm) for number, norm in enumerate(norms, 1)])) == 1


def rising(*losses):
    return warned(Watchdog(), [step(number, loss=loss) for number, loss in enumerate(losses, 1)])


def test_a_loss_that_rises_is_named_once():
    (text,) = rising(6.2, 5.0, 3.0, 3.1, 2.9, 3.0, 2.9, 4.0, 4.2, 4.3, 9.0, 9.0)
    assert text.startswith("the loss rises: 4.17 nats in the last 3 reports, up to step 10, 1.23 more than it was;")
    assert len(rising(*[3.0] * 5, *[3000.0] * 2)) == 1


def test_a_loss_that_is_high_for_a_moment_or_falls_is_left_alone():
    assert rising(7.0, 171.0, 9.0, 6.9, 6.5, 6.0) == []
    assert rising(3.0, 3.1, 2.9, 5.5, 3.0, 3.0) == []
    assert rising(*[3.0 + 0.1 * number for number in range(3)], *[3.1] * 20) == []


def test_a_loss_of_few_tokens_may_jump():
    assert rising(7.44, 7.34, 6.0, 6.97, 6.68, 6.27, 5.65, 7.23, 6.87, 7.53) == []


def test_a_loader_that_brings_nothing_is_named_while_it_lasts():
    watchdog = Watchdog()
    assert watchdog.stalled(rules.STALLED - 1) == []
    (notice,) = watchdog.stalled(rules.STALLED + 1)
    assert "no text for 31 seconds" in notice.text and "--data" in notice.text
    assert watchdog.stalled(rules.STALLED + 2) == []


def test_a_loader_that_keeps_the_model_waiting_is_named_once():
    watchdog = Watchdog()
    output = [watchdog.loading(0.6, 1.0) for _ in range(100)]
    (notice,) = sum(output, [])
    assert output.index([notice]) == rules.WINDOW - 1, "not before it is judged over a while"
    assert "18 seconds waited for it, 60 % of the time" in notice.text
    assert len(Watchdog().loading(600.0, 601.0)) == 1, "a single stall counts, too"
    assert Watchdog().loading(15.0, 30.0) == []
    watchdog = Watchdog()
    assert watchdog.loading(0.0, 3600.0) == [] and len(watchdog.loading(30.0, 31.0)) == 1, "a good hour excuses nothing"


def test_a_slow_disk_is_named_once():
    watchdog = Watchdog()
    (notice,) = watchdog.saved(12.0, 40.0)
    assert "a checkpoint took 12 seconds, after 40 seconds of training" in notice.text
    assert watchdog.saved(12.0, 40.0) == []
    assert Watchdog().saved(rules.SLOW_SAVE - 0.1, 0.0) == [] and Watchdog().saved(12.0, 60.0) == []
