"""Cascades and ensembles of the physics page (rule 10), worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import twin_stages
from cases import make_pool
from page_cases import Side, case, times
from scipy.stats import multivariate_normal, norm
from twin_cases import simulated, twin_of
from twin_draws import bits, draw, spread

from selfserve.protocol import Admit, Decision, Route, Step, Then
from selfserve.scenario import NS, CorrectnessPhysics, Pool, ServicePhysics, SpotPhysics, Storm, to_ns

SIDES = [twin_of, simulated]
UNSURE, ALSO = Then.IF_UNSURE, Then.ALSO


@pytest.fixture(params=SIDES, ids=["twin", "simulator"])
def side(request: pytest.FixtureRequest) -> Side:
    return request.param


def pool(*service_s: float, market: str = "on_demand", largest: int = 1, name: str = "vm", **others: object) -> Pool:
    """Service time of each model; a batch of b takes (1 + b) / 2 of that; 0: not resident."""
    times_s = [[0.0, *(one * (1 + b) / 2 for b in range(1, largest + 1))] for one in service_s]
    return make_pool(name, market, np.array([[to_ns(s) for s in row] for row in times_s]), **others)  # type: ignore[arg-type]


def routes(*steps: Step) -> tuple[tuple[Route, ...], ...]:
    return ((Route(steps),),)


def cascade(share: float, *machines: int, **others: object) -> Decision:
    """Model 0, then if unsure model 1, on pool 0."""
    steps = Step(0, 0, then=UNSURE, unsure_share=share), Step(0, 1)
    return Decision(machines or (1,), routes(*steps), **others)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- cascades
@pytest.mark.parametrize(("share", "model", "finish_s"), [(0.0, 0, 11), (1.0, 1, 14)])
def test_unsure_answers_go_on(side: Side, share: float, model: int, finish_s: float) -> None:
    answer = side(case([pool(1, 3)], times(10), [cascade(share)], (3.5,)))
    assert answer.model.tolist() == [model]
    assert answer.start_ns.tolist() == times(10).tolist()
    assert answer.finish_ns.tolist() == times(finish_s).tolist()
    served = sum(o.served for o in answer.observations)
    assert served[0, :, 0].tolist() == [model == 0, model == 1]  # one answer only
    assert sum(o.late for o in answer.observations).tolist() == [share == 1.0]


def test_the_draw_says_who_is_unsure(side: Side) -> None:
    # Confidence that says nothing: of all that come, 30 % and then 60 % go on.
    steps = (Step(0, 0, then=UNSURE, unsure_share=0.3), Step(0, 1, then=UNSURE, unsure_share=0.6), Step(0, 2))
    physics = CorrectnessPhysics(0.8, 0.5)
    run = case([pool(1, 2, 3, slots=40)], times(*range(5, 100)), [Decision((1,), routes(*steps))], correctness=physics)
    answer = side(run)
    unsure = [[bits(draw(0, 6, i * 64 + g), 15, 0) < u for g, u in enumerate((19661, 39322))] for i in range(95)]
    expected = [0 if not first else 1 if not second else 2 for first, second in unsure]
    assert set(expected) == {0, 1, 2}
    assert answer.model.tolist() == expected
    assert ((answer.finish_ns - answer.start_ns) // NS).tolist() == [[1, 3, 6][g] for g in expected]


def test_moves_on_come_in_order_each_with_its_dispatch(side: Side) -> None:
    # 0 and 1 finish at 11 s; 0 moves on and takes a slot, the dispatch of that move gives the other slot to 2,
    # though 1 comes before it; 1 follows when a slot is free, at 12 s.
    run = case([pool(1, 3, slots=2)], times(10, 10, 10.5), [cascade(1.0)])
    answer = side(run)
    assert answer.start_ns.tolist() == times(10, 10, 11).tolist()
    assert answer.finish_ns.tolist() == times(14, 15, 17).tolist()  # 1: 12 to 15; 2: 11 to 12, then 14 to 17


def test_the_pools_own_dispatch_comes_last(side: Side) -> None:
    # At 11 s id 0 moves on within its pool and is served before 1, which waited.
    answer = side(case([pool(1, 3)], times(10, 10.5), [cascade(1.0)]))
    assert answer.start_ns.tolist() == times(10, 14).tolist()
    assert answer.finish_ns.tolist() == times(14, 18).tolist()


def test_steps_are_tried_within_a_stage(side: Side) -> None:
    # Stage 0 waits for its machine though that is busy and its slack is gone; stage 1 is not a step to leave to.
    steps = (Step(0, 0, Admit.IF_IDLE, leave_slack_s=500.0, then=UNSURE, unsure_share=0.0), Step(1, 1))
    pools = [pool(4, 0), pool(0, 1, market="function", name="fn")]
    answer = side(case(pools, times(10, 11), [Decision((1, 0), routes(*steps))], (100.0,)))
    assert answer.pool.tolist() == [0, 0]
    assert answer.finish_ns.tolist() == times(14, 18).tolist()


def test_overflow_to_functions_in_a_later_stage(side: Side) -> None:
    # Both are unsure at 11 s; 0 finds the large machine idle, 1 goes to the function: cold start 2.5 s.
    first = Step(0, 0, then=UNSURE, unsure_share=1.0)
    steps = (first, Step(1, 1, Admit.IF_IDLE), Step(2, 1))
    pools = [pool(1, 0, slots=2), pool(0, 3, name="large"), pool(0, 2, market="function", name="fn")]
    answer = side(case(pools, times(10, 10), [Decision((1, 1, 0), routes(*steps))]))
    assert answer.pool.tolist() == [1, 2]
    assert answer.start_ns.tolist() == times(10, 10).tolist()
    assert answer.finish_ns.tolist() == times(14, 15.5).tolist()
    assert answer.cold.tolist() == [False, True]


def test_leaving_in_a_later_stage(side: Side) -> None:
    # Id 1 is unsure at 12 s, waits for the large machine and leaves for the function at deadline - 5 s = 15.25 s.
    first = Step(0, 0, then=UNSURE, unsure_share=1.0)
    steps = (first, Step(1, 1, leave_slack_s=5.0), Step(2, 1))
    pools = [pool(1, 0), pool(0, 9, name="large"), pool(0, 2, market="function", name="fn")]
    answer = side(case(pools, times(10, 10.25), [Decision((1, 1, 0), routes(*steps))], (10.0,)))
    assert answer.pool.tolist() == [1, 2]
    assert answer.finish_ns.tolist() == times(20, 15.25 + 4.5).tolist()


def test_every_stage_is_billed(side: Side) -> None:
    # Cold, cold (its own function), then both warm.
    answer = side(case([pool(0.3, 0.7, market="function", name="fn")], times(10, 20), [cascade(1.0, 0)]))
    assert answer.finish_ns.tolist() == times(10 + 2.8 + 3.2, 21).tolist()
    assert answer.function_ms.tolist() == [[2800 + 300, 3200 + 700]]
    assert answer.invocations.tolist() == [[2, 2]]
    assert sum(o.cold_starts for o in answer.observations).tolist() == [2]


def test_each_stage_has_its_own_service_time(side: Side) -> None:
    answer = side(case([pool(1, 3)], times(10), [cascade(1.0)], service=ServicePhysics(0.5)))
    quantile = bits(draw(0, 1, 0), 23, 12)
    first, second = spread(NS, 0.5, quantile), spread(3 * NS, 0.5, (quantile + 1365) & 4095)
    assert answer.finish_ns.tolist() == [10 * NS + first + second]


def test_a_loss_repeats_the_stage_only(side: Side) -> None:
    # The spot machine gets its notice at 12 s and is gone at 13 s; the next one, decided at 20 s, is ready at 21 s.
    storm = SpotPhysics(0.0, 1.0, (Storm(12.0, 2.0, 1e18),))
    steps = (Step(0, 0, then=UNSURE, unsure_share=1.0), Step(1, 1))
    pools = [pool(1, 0), pool(0, 3, name="spot", market="spot")]
    answer = side(case(pools, times(10), [Decision((1, 1), routes(*steps))], spot=storm))
    assert answer.start_ns.tolist() == times(10).tolist()
    assert answer.finish_ns.tolist() == times(24).tolist()
    assert answer.pool.tolist() == [1]


def test_unanswered_stage_is_no_answer(side: Side) -> None:
    steps = (Step(0, 0, then=UNSURE, unsure_share=1.0), Step(1, 1))
    answer = side(case([pool(1, 0), pool(0, 3, name="none")], times(10), [Decision((1, 0), routes(*steps))]))
    assert answer.rejected.tolist() == [True]
    assert answer.finish_ns.tolist() == [-1]


def test_unsure_is_read_when_the_service_starts(side: Side) -> None:
    # The second finishes stage 0 after the decision of 10 s, which would find it sure: it moves on all the same.
    answer = side(case([pool(4, 1, slots=2)], times(5, 7), [cascade(1.0), cascade(0.0)]))
    assert answer.finish_ns.tolist() == times(5 + 4 + 1, 7 + 4 + 1).tolist()


# ------------------------------------------------------------------------------------------------------ ensembles
@pytest.mark.parametrize(("service_s", "pool_of_answer", "finish_s"), [(3, 1, 13), (1, 0, 12), (2, 1, 12)])
def test_ensemble_answers_with_its_last_stage(
    side: Side, service_s: float, pool_of_answer: int, finish_s: float
) -> None:
    steps = (Step(0, 0, then=ALSO), Step(1, 1))
    pools = [pool(2, 0), pool(0, service_s, name="other")]
    answer = side(case(pools, times(10), [Decision((1, 1), routes(*steps))]))
    assert answer.pool.tolist() == answer.model.tolist() == [pool_of_answer]
    assert answer.start_ns.tolist() == times(10).tolist()
    assert answer.finish_ns.tolist() == times(finish_s).tolist()
    assert sum(o.served.sum() for o in answer.observations) == 1
    assert sum(o.busy_slot_s for o in answer.observations).tolist() == [2, service_s]


def test_stages_of_one_request_wait_in_one_pool(side: Side) -> None:
    # Order: deadline, id, stage. One slot: 0/0, 0/1, 1/0, 1/1.
    steps = (Step(0, 0, then=ALSO), Step(0, 1))
    answer = side(case([pool(1, 3)], times(10, 10), [Decision((1,), routes(*steps))]))
    assert answer.start_ns.tolist() == times(10, 14).tolist()
    assert answer.finish_ns.tolist() == times(14, 18).tolist()


def test_stages_of_one_request_in_one_batch(side: Side) -> None:
    # The first offer is not due before its batch is full, the second fills it: 1.5 s for two.
    steps = (Step(0, 0, then=ALSO), Step(0, 0))
    decision = Decision((1,), routes(*steps), (2,), (5.0,))
    answer = side(case([pool(1, largest=2)], times(10), [decision]))
    assert answer.start_ns.tolist() == times(10).tolist()
    assert answer.finish_ns.tolist() == times(11.5).tolist()


def test_each_offer_is_dispatched_before_the_next(side: Side) -> None:
    # The first stage takes the only slot at once, so that the second does not find it idle.
    steps = (Step(0, 0, then=ALSO), Step(0, 0, Admit.IF_IDLE), Step(1, 0))
    pools = [pool(1), pool(1, market="function", name="fn")]
    answer = side(case(pools, times(10), [Decision((1, 0), routes(*steps))]))
    assert answer.pool.tolist() == [1]
    assert answer.finish_ns.tolist() == times(13.5).tolist()


def test_fit_counts_the_earlier_stage_of_the_same_request(side: Side) -> None:
    # One slot busy to 14 s; stage 0 waits and would finish at 15 s, stage 1 at 16 s: it fits only if that is in time.
    steps = (Step(0, 0, then=ALSO), Step(0, 1, Admit.IF_FITS), Step(1, 1))
    pools = [pool(1, 1, 4), pool(0, 1, 0, market="function", name="fn")]
    decision = Decision((1, 0), ((Route((Step(0, 2),)),), (Route(steps),)))
    seed = next(n for n in range(50) if bits(draw(n, 1, 0), 39, 24) < 32768 <= bits(draw(n, 1, 1), 39, 24))
    for slo_s, model, finish_s in ((5.5, 0, 15), (5.75, 1, 16)):
        run = case(pools, times(10, 10.25), [decision], (900.0, slo_s), thresholds=[[32768, 65536]])
        answer = side(replace(run, seed=seed))
        assert answer.model.tolist() == [2, model]
        assert answer.finish_ns.tolist() == times(14, finish_s).tolist()


def test_ensemble_waits_for_all(side: Side) -> None:
    steps = (Step(0, 0, then=ALSO), Step(1, 0))
    answer = side(case([pool(1), pool(1, name="none")], times(10), [Decision((1, 0), routes(*steps))]))
    assert answer.rejected.tolist() == [True]
    assert sum(o.served.sum() for o in answer.observations) == 0
    assert sum(o.busy_slot_s[0] for o in answer.observations) == 1


# ---------------------------------------------------------------------------------------------------- correctness
def test_answers_score_with_the_accuracy_of_their_route(side: Side) -> None:
    # Independent models of 70 and 71 %: two of them count as their mean; all unsure: as the last.
    physics = CorrectnessPhysics(0.0, 0.85)
    pair = Decision((1,), routes(Step(0, 0, then=ALSO), Step(0, 1)))
    for decision, expected in ((pair, 70.5), (cascade(1.0), 71.0), (cascade(0.0), 70.0)):
        answer = side(case([pool(1, 1)], times(10, 15), [decision], correctness=physics))
        assert answer.mean_accuracy_pct == pytest.approx([expected], abs=1e-9)
        assert sum(o.accuracy_sum for o in answer.observations) == pytest.approx([2 * expected], abs=1e-9)


def test_alone_a_model_passes_on_its_share_and_keeps_its_accuracy() -> None:
    limits, share = twin_stages.cascade((0.7, 0.8), (0.25,), 0.8, 0.85)
    assert limits == (16384,)
    assert 0.7 < share
    assert twin_stages.cascade((0.7, 0.8), (0.0,), 0.8, 0.85)[1] == pytest.approx(0.7, abs=1e-9)
    assert twin_stages.cascade((0.7, 0.8), (1.0,), 0.8, 0.85)[1] == pytest.approx(0.8, abs=1e-9)
    assert twin_stages.cascade((0.7, 0.8, 0.9), (1.0, 0.0), 0.8, 0.85) == ((65536, 0), pytest.approx(0.8, abs=1e-9))


def test_chance_confidence_mixes_the_accuracies() -> None:
    limits, share = twin_stages.cascade((0.6, 0.7, 0.8), (0.5, 0.25), 0.6, 0.5)
    assert limits == (32768, 16384)
    assert share == pytest.approx(0.5 * 0.6 + 0.5 * 0.75 * 0.7 + 0.5 * 0.25 * 0.8, abs=1e-9)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_ensembles_have_closed_forms(correlation: float) -> None:
    a, b, c = 0.65, 0.75, 0.85
    assert twin_stages.ensemble((a, b), correlation) == pytest.approx((a + b) / 2, abs=1e-8)

    def both(p: float, q: float) -> float:
        cut = [norm.ppf(p), norm.ppf(q)]
        return float(multivariate_normal.cdf(cut, cov=[[1, correlation], [correlation, 1]]))

    cut, cov = norm.ppf([a, b, c]), np.full((3, 3), correlation) + (1 - correlation) * np.eye(3)
    all_three = float(multivariate_normal.cdf(cut, cov=cov, abseps=1e-9, maxpts=10**7))
    expected = both(a, b) + both(a, c) + both(b, c) - 2 * all_three
    assert twin_stages.ensemble((a, b, c), correlation) == pytest.approx(expected, abs=1e-6)


def test_cascade_agrees_with_drawn_answers() -> None:
    # 4 million drawn requests: five standard errors are 0.0013 at most.
    accuracies, shares, correlation, quality = (0.6, 0.7, 0.85), (0.5, 0.4), 0.7, 0.8
    rng, n = np.random.default_rng(1), 4_000_000
    z, gap = rng.standard_normal(n), math.sqrt(2) * norm.ppf(quality)
    here, right, passed_on = np.ones(n, bool), np.zeros(n, bool), []
    for stage, a in enumerate(accuracies):
        noise = math.sqrt(1 - correlation) * rng.standard_normal(n)
        own = math.sqrt(correlation) * z + noise < norm.ppf(a)
        confidence = rng.standard_normal(n) + gap * own
        last = stage == len(accuracies) - 1
        go_on = np.zeros(n, bool) if last else confidence < np.quantile(confidence, shares[stage])
        right |= here & ~go_on & own
        if not last:
            passed_on.append(go_on[here].mean())
        if stage == 0:  # the quality is the AUROC: the chance that a right answer looks surer than a wrong one
            assert np.mean(confidence[own][: 10**6] > confidence[~own][: 10**6]) == pytest.approx(quality, abs=2e-3)
        here = here & go_on
    limits, share = twin_stages.cascade(accuracies, shares, correlation, quality)
    assert [u / 65536 for u in limits] == pytest.approx(passed_on, abs=1.3e-3)
    assert share == pytest.approx(right.mean(), abs=1.3e-3)
    assert limits[1] > 0.4 * 65536  # what was hard for one is hard for the next
