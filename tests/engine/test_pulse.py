from headgate_engine.pulse import MOST_RETRY_S, Pulse


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(*passes: tuple[float, int]) -> Pulse:
    time = Time()
    pulse = Pulse(time)
    for seconds, finished in passes:
        pulse.begin()
        time.now += seconds
        pulse.end(finished)
        time.now += 100.0  # idle time is no service time
    return pulse


def test_the_rate_is_of_busy_time_alone() -> None:
    assert measured((1.0, 10), (1.0, 10)).per_second == 10.0


def test_old_measurements_fade() -> None:
    rate = measured((10.0, 1000), *[(1.0, 10)] * 60).per_second
    assert 10.0 <= rate < 13.0


def test_the_wait_is_what_stands_before_you_at_the_measured_rate() -> None:
    pulse = measured((1.0, 10))
    assert pulse.retry_after_s(20) == 2.0
    assert pulse.retry_after_s(10**6) == MOST_RETRY_S
    assert 0 < pulse.retry_after_s(0) < 1.0


def test_without_a_measurement_the_wait_is_a_second() -> None:
    assert Pulse(Time()).retry_after_s(50) == 1.0


def test_a_pass_that_does_not_end_shows() -> None:
    time = Time()
    pulse = Pulse(time)
    assert pulse.stalled_ms == 0
    pulse.begin()
    time.now += 2.5
    assert pulse.stalled_ms == 2500
    pulse.end(0)
    assert pulse.stalled_ms == 0
