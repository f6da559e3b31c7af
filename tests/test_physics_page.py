"""Hand-computed scenarios of the physics page: the simulator and its twin must both give what paper and pencil give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import make_pool
from page_cases import Side, case, fn, times, to, vm
from twin_cases import simulated, twin_of
from twin_draws import bits, draw, exponential, exponential_table, fin, lognormal_table

from selfserve.protocol import Admit, Decision, Route, Step
from selfserve.scenario import NS, FunctionPhysics, SpotPhysics, Storm, VmPhysics, to_ns


@pytest.fixture(params=[twin_of, simulated], ids=["twin", "simulator"])
def side(request: pytest.FixtureRequest) -> Side:
    return request.param


ONE_VM = Decision((1,), to(Step(0, 0)))
NO_VM = Decision((0,), to(Step(0, 0)))


# ---------------------------------------------------------------------------------------------------- 2 randomness
def test_draws_are_splitmix64() -> None:
    # The published first outputs of SplitMix64 for seeds 0 and 1234567.
    assert fin(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert fin((1234567 + 0x9E3779B97F4A7C15) % 2**64) == 6457827717110365317
    assert draw(0, 1, 0) != draw(0, 2, 0) != draw(0, 2, 1)


def test_tables_have_their_means() -> None:
    assert sum(lognormal_table(0.0)) / 4096 == 65536
    table = np.array(lognormal_table(0.5)) / 65536
    assert table.mean() == pytest.approx(1, abs=1e-5)
    assert table.std() == pytest.approx(0.5, rel=0.01)
    assert exponential_table()[2048] == round(np.log(2) * 2**24)
    assert exponential(2**23 + 2048) == (exponential_table()[2048] + exponential_table()[2049]) // 2


# ------------------------------------------------------------------------------------------------------ 4 machines
AWS = VmPhysics(17.0, 83.0, 0.0, 60.0)


@pytest.mark.parametrize(
    ("released_s", "warmup_s", "seconds", "billed_s"),
    [
        (20.0, 0.0, 120, 60.0),  # runs from 17 s: at least a minute
        (10.0, 0.0, 120, 0.0),  # released while pending: nothing
        (17.0, 0.0, 120, 60.0),  # released at the instant at which it runs: counts as running
        (20.0, 30.0, 120, 47.0),  # [17, 77) from the warm-up's end on
        (20.0, 0.0, 50, 33.0),  # [17, 77) up to the end
        (20.0, 80.0, 120, 0.0),  # all of it inside the warm-up
        (90.0, 0.0, 120, 73.0),  # [17, 90)
        (79.5, 0.0, 120, 63.0),  # 62.5 s of life, 63 started seconds
    ],
)
def test_bill_of_one_machine(side: Side, released_s: float, warmup_s: float, seconds: int, billed_s: float) -> None:
    answer = side(
        case([vm()], times(), [ONE_VM, NO_VM], interval_s=released_s, seconds=seconds, warmup_s=warmup_s, vm=AWS)
    )
    assert answer.vm_billed_ns.tolist() == [to_ns(billed_s)]
    assert answer.cost_usd[0] == pytest.approx(billed_s * 0.085 / 3600, abs=1e-12)


def test_requests_wait_for_the_machine(side: Side) -> None:
    # Ready at 100 s; the second waits for the first; the machine is billed from 17 s to the end.
    answer = side(case([vm(2.0)], times(5, 6), [ONE_VM], vm=AWS))
    assert answer.start_ns.tolist() == times(100, 102).tolist()
    assert answer.finish_ns.tolist() == times(102, 104).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(103)]


def test_scale_in_takes_idle_then_newest_busy_and_drains(side: Side) -> None:
    # Machines 0 and 1 are busy to 13 s; at 10 s two of three must go: idle 2 at once, busy 1 at 13 s.
    three, one = replace(ONE_VM, machines=(3,)), ONE_VM
    answer = side(case([vm(4.0)], times(9, 9, 12, 12.5), [three, one]))
    assert answer.start_ns.tolist() == times(9, 9, 13, 17).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(120 + 13 + 10)]


def test_work_goes_to_the_oldest_machine(side: Side) -> None:
    # Two machines, one request at a time: always on machine 0, so that machine 1 goes at 10 s though 0 is busy.
    answer = side(case([vm(4.0)], times(2, 9), [replace(ONE_VM, machines=(2,)), ONE_VM]))
    assert answer.vm_billed_ns.tolist() == [to_ns(120 + 10)]


def test_machines_are_capped_and_have_slots(side: Side) -> None:
    # Two machines allowed, two slots each: the fifth request waits.
    many = replace(ONE_VM, machines=(50,))
    answer = side(case([vm(3.0, slots=2, max_machines=2)], times(5, 5, 5, 5, 5), [many]))
    assert answer.start_ns.tolist() == times(5, 5, 5, 5, 8).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(240)]


# -------------------------------------------------------------------------------------------------------- 5 queues
def test_batch_waits_for_others_or_for_its_time(side: Side) -> None:
    decision = Decision((1,), to(Step(0, 0)), (3,), (0.5,))
    answer = side(case([vm([1.0, 1.5, 2.0])], times(10, 10.2, 20, 20.1, 20.2, 30), [decision]))
    assert answer.start_ns.tolist() == times(10.5, 10.5, 20.2, 20.2, 20.2, 30.5).tolist()
    assert answer.finish_ns.tolist() == times(12, 12, 22.2, 22.2, 22.2, 31.5).tolist()


def test_batch_is_capped_by_the_profile(side: Side) -> None:
    answer = side(case([vm([1.0, 1.5])], times(9, 9.2, 9.3, 9.4), [Decision((1,), to(Step(0, 0)), (16,), (0.0,))]))
    assert answer.start_ns.tolist() == times(9, 10, 10, 11.5).tolist()


def test_earliest_deadline_first_across_classes(side: Side) -> None:
    # Minute 0 brings class 0 (SLO 100 s), minute 1 class 1 (SLO 5 s): ids 2 and 3 overtake id 1, not each other.
    routes = (Route((Step(0, 0),)),)
    decision = Decision((1,), (routes, routes))
    answer = side(
        case([vm(5.0)], times(59, 59.5, 60, 60.5), [decision], (100.0, 5.0), thresholds=[[65536, 65536], [0, 65536]])
    )
    assert answer.klass.tolist() == [0, 0, 1, 1]
    assert answer.start_ns.tolist() == times(59, 74, 64, 69).tolist()


def test_leave_to_a_function(side: Side) -> None:
    # id 1 (deadline 17 s) waits on the machine until 15 s, then pays a cold start of 1 s and 1 s of service.
    route = to(Step(0, 0, leave_slack_s=2.0), Step(1, 0))
    cold_1s = FunctionPhysics(init_s=1.0)
    answer = side(case([vm(10.0), fn(1.0)], times(10, 11), [Decision((1, 0), route)], (6.0,), function=cold_1s))
    assert answer.pool.tolist() == [0, 1]
    assert answer.start_ns.tolist() == times(10, 15).tolist()
    assert answer.finish_ns.tolist() == times(20, 17).tolist()
    assert answer.cold.tolist() == [False, True]
    assert answer.function_ms.sum() == 2000


def test_late_binding(side: Side) -> None:
    # id 1 starts at 14 s with 2 s left, less than 2.5 s: the quick model answers; id 0 had all of its 5 s.
    pool = make_pool("vm", "on_demand", np.array([[0, to_ns(4)], [0, to_ns(1)]]))
    decision = Decision((1,), to(Step(0, 0, late_model=1, late_slack_s=2.5)))
    answer = side(case([pool], times(10, 11), [decision], (5.0,)))
    assert answer.model.tolist() == [0, 1]
    assert answer.finish_ns.tolist() == times(14, 15).tolist()
    exactly = side(
        case([pool], times(10, 11), [Decision((1,), to(Step(0, 0, late_model=1, late_slack_s=2.0)))], (5.0,))
    )
    assert exactly.model.tolist() == [0, 0]


def test_functions_do_not_bind_late(side: Side) -> None:
    pool = make_pool("fn", "function", np.array([[0, to_ns(4)], [0, to_ns(1)]]))
    decision = Decision((0,), to(Step(0, 0, late_model=1, late_slack_s=6.0)))
    assert side(case([pool], times(10), [decision], (5.0,))).model.tolist() == [0]


def test_finish_comes_before_the_decision(side: Side) -> None:
    # At 10 s the machine finishes id 0 and takes id 1, only then is it released: it drains.
    answer = side(case([vm(4.0)], times(6, 7), [ONE_VM, NO_VM]))
    assert answer.start_ns.tolist() == times(6, 10).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(14)]


def test_slots_that_finish_together_are_free_together(side: Side) -> None:
    # Both slots finish at 10 s and ids 2 and 3 start there, though id 3, whose route leaves at once, then is a head.
    stay, leave = Route((Step(0, 0),)), Route((Step(0, 0, leave_slack_s=1000.0), Step(1, 0)))
    both = case([vm(5.0, slots=2), fn()], times(5, 5, 8, 8), [Decision((1, 0), ((stay, leave),))])
    routes = {seed: [bits(draw(seed, 1, i), 11, 0) >= 2048 for i in range(4)] for seed in range(100)}
    seed = next(seed for seed in routes if routes[seed] == [False, False, False, True])
    answer = side(replace(both, seed=seed))
    assert answer.pool.tolist() == [0, 0, 0, 0]
    assert answer.start_ns.tolist() == times(5, 5, 10, 10).tolist()


# ----------------------------------------------------------------------------------------------------- 6 admission
def test_idle_admission_overflows(side: Side) -> None:
    route = to(Step(0, 0, Admit.IF_IDLE), Step(1, 0))
    answer = side(case([vm(2.0), fn(1.0)], times(10, 11, 12), [Decision((1, 0), route)]))
    assert answer.pool.tolist() == [0, 1, 0]  # at 12 s the finish comes before the arrival


def test_fitting_admission_counts_the_work_ahead(side: Side) -> None:
    # SLO 3 s, service 2 s: at 10.5 s the answer would come at 14 s, at 11 s at 14 s too, which is in time just then.
    route = to(Step(0, 0, Admit.IF_FITS), Step(1, 0))
    decision = Decision((1, 0), route)
    assert side(case([vm(2.0), fn(1.0)], times(10, 10.5), [decision], (3.0,))).pool.tolist() == [0, 1]
    assert side(case([vm(2.0), fn(1.0)], times(10, 11), [decision], (3.0,))).pool.tolist() == [0, 0]
    # With nothing ready, the believed ready time (100 s) counts; with nothing booting, never.
    slow = side(case([vm(2.0), fn(1.0)], times(96, 97), [decision], (5.0,), vm=AWS))
    assert slow.pool.tolist() == [1, 0]
    none = side(case([vm(2.0), fn(1.0)], times(97), [Decision((0, 0), route)], (1000.0,)))
    assert none.pool.tolist() == [1]


def test_fitting_admission_to_functions(side: Side) -> None:
    # A cold answer takes 2.5 + 0.3 s, a warm one 0.3 s; SLO 1 s.
    route = to(Step(0, 0, Admit.IF_FITS), Step(1, 0))
    pools = [fn(), vm(0.5)]
    decision = Decision((0, 1), route)
    assert side(case(pools, times(10), [decision], (1.0,))).pool.tolist() == [1]
    assert side(case(pools, times(10), [decision], (2.8,))).pool.tolist() == [0]
    # One container at a time: the third comes while the second is in service.
    answer = side(case(pools, times(10, 20, 20.1), [decision], (2.8,), function=FunctionPhysics(concurrency=1)))
    assert answer.pool.tolist() == [0, 0, 1]


def test_weights_choose_the_route(side: Side) -> None:
    first, second, other = Route((Step(0, 0),), 0.0), Route((Step(1, 0),), 2.0), replace(fn(), name="other")
    answer = side(case([fn(), other], times(*range(50)), [Decision((0, 0), ((first, second),))]))
    assert set(answer.pool.tolist()) == {1}
    halves = side(case([fn(), other], times(*range(100)), [Decision((0, 0), ((replace(first, weight=2.0), second),))]))
    assert 30 < np.count_nonzero(halves.pool) < 70  # five standard deviations are 25


# ----------------------------------------------------------------------------------------------------- 7 functions
ON_FN = Decision((0,), to(Step(0, 0)))


def test_cold_and_warm_bills(side: Side) -> None:
    answer = side(case([fn(0.3000001)], times(1, 10), [ON_FN]))
    assert answer.cold.tolist() == [True, False]
    assert answer.finish_ns.tolist() == times(3.8000001, 10.3000001).tolist()
    assert answer.function_ms.tolist() == [[2801 + 301]]  # started milliseconds, initialisation included
    assert answer.invocations.tolist() == [[2]]
    assert answer.cost_usd[0] == pytest.approx(3.102 * 0.105 / 3600 + 2 * 2e-7, abs=1e-15)


def test_bill_of_functions_counts_by_arrival(side: Side) -> None:
    # The warm-up ends at 10 s; the answer begun at 9.9 s costs nothing, the cold one of 10 s and the warm one do.
    answer = side(case([fn()], times(1, 9.9, 10, 119.9), [ON_FN], warmup_s=10.0))
    assert answer.cold.tolist() == [True, False]
    assert answer.invocations.tolist() == [[2]]
    assert answer.function_ms.tolist() == [[2800 + 300]]


def test_keep_alive_is_half_open(side: Side) -> None:
    # The first answer is at 3.8 s, the container is warm in [3.8, 13.8).
    physics = FunctionPhysics(keep_alive_s=10.0)
    assert side(case([fn()], times(1, 13.8), [ON_FN], function=physics)).cold.tolist() == [True, True]
    last = np.array([NS, to_ns(13.8) - 1])
    assert side(case([fn()], last, [ON_FN], function=physics)).cold.tolist() == [True, False]
    first = np.array([NS, to_ns(3.8)])
    assert side(case([fn()], first, [ON_FN], function=physics)).cold.tolist() == [True, False]


def test_most_recent_container_is_used_first(side: Side) -> None:
    # Containers finish at 3.8 and 4.8 s; the one used at 8 s is the second, so that the first expires at 13.8 s.
    physics = FunctionPhysics(keep_alive_s=10.0)
    answer = side(case([fn()], times(1, 2, 8, 14, 14), [ON_FN], function=physics))
    assert answer.cold.tolist() == [True, True, False, False, True]


def test_tokens_bound_cold_starts(side: Side) -> None:
    # Two at once, then one every 5 s; every container is busy all the while.
    answer = side(case([fn(50.0)], times(1, 1, 1, 1), [ON_FN], function=FunctionPhysics(burst_per_10s=2)))
    assert answer.start_ns.tolist() == times(1, 1, 6, 11).tolist()
    assert answer.cold.all()


def test_concurrency_bounds_a_function(side: Side) -> None:
    answer = side(case([fn(1.0)], times(1, 1, 1), [ON_FN], function=FunctionPhysics(init_s=1.0, concurrency=2)))
    assert answer.start_ns.tolist() == times(1, 1, 3).tolist()
    assert answer.cold.tolist() == [True, True, False]


def test_provisioned_container(side: Side) -> None:
    # Ready at 2.5 s; id 0 still starts cold; id 1 takes the provisioned one, id 2 at the same time the warm one.
    kept = replace(ON_FN, machines=(1,))
    answer = side(case([fn()], times(1, 5, 5, 15), [kept, ON_FN]))
    assert answer.cold.tolist() == [True, False, False, False]
    assert answer.provisioned_ms.tolist() == [[300]]
    assert answer.function_ms.tolist() == [[2800 + 300 + 300]]
    assert answer.invocations.tolist() == [[4]]
    assert answer.vm_billed_ns.tolist() == [to_ns(10)]
    dollars = 10 * 0.015 + 0.3 * 0.061 + 3.4 * 0.105
    assert answer.cost_usd[0] == pytest.approx(dollars / 3600 + 4 * 2e-7, abs=1e-15)


# ---------------------------------------------------------------------------------------------------------- 8 spot
def lightning(notice_s: float, refused_share: float = 0.0) -> SpotPhysics:
    """A storm of 10 s from 50 s on, so fierce that every machine is noticed in its first nanosecond."""
    return SpotPhysics(0.0, notice_s, (Storm(50.0, 10.0, 1e18, refused_share),))


def test_spot_loss_returns_its_request(side: Side) -> None:
    # Noticed at 50 s, gone at 55 s with id 1 in service; a machine asked for at 60 s is ready at 61 s.
    answer = side(case([vm(20.0, "spot")], times(22, 42), [ONE_VM], spot=lightning(5.0, 1.0)))
    assert answer.start_ns.tolist() == times(22, 61).tolist()
    assert answer.finish_ns.tolist() == times(42, 81).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(55 + 60)]
    assert [int(o.lost[0]) for o in answer.observations] == [0, 0, 0, 0, 1] + [0] * 7
    assert [int(o.refused[0]) for o in answer.observations] == [0, 0, 0, 0, 0, 1] + [0] * 6


def test_answer_at_the_last_instant_of_a_notice(side: Side) -> None:
    # The same, but the service ends at 55 s exactly: answered; the next waits, for work does not go to a draining one.
    answer = side(case([vm(20.0, "spot")], times(35, 36), [ONE_VM], spot=lightning(5.0, 1.0)))
    assert answer.finish_ns.tolist() == times(55, 81).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(55 + 60)]


def test_idle_spot_machine_goes_at_its_notice(side: Side) -> None:
    answer = side(case([vm(2.0, "spot")], times(51), [ONE_VM, ONE_VM, NO_VM, ONE_VM], spot=lightning(30.0, 1.0)))
    assert answer.start_ns.tolist() == times(61).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(20 + (50 - 30) + 60)]


# ---------------------------------------------------------------------------------------------------- 9 the window
def test_what_can_never_be_answered_is_rejected(side: Side) -> None:
    answer = side(case([vm(2.0)], times(5, 6, 7), [ONE_VM, NO_VM]))
    assert answer.rejected.tolist() == [False, False, False]
    answer = side(case([vm(2.0)], times(5, 6, 15), [ONE_VM, NO_VM]))
    assert answer.rejected.tolist() == [False, False, True]


def test_service_goes_on_after_the_end(side: Side) -> None:
    # No decision at 120 s or later: the machine keeps serving, but its bill ends.
    answer = side(case([vm(20.0)], times(110, 111, 112), [ONE_VM]))
    assert answer.finish_ns.tolist() == times(130, 150, 170).tolist()
    assert answer.vm_billed_ns.tolist() == [to_ns(120)]
