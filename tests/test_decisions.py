"""A decision that does not fit ends in one line that names the entry, and nothing of it is put in force."""

from __future__ import annotations

import numpy as np
import pytest

from selfserve.errors import InputError
from selfserve.policies import make_policy
from selfserve.protocol import Admit, Decision, Route, Step
from selfserve.scenario import load_scenario
from selfserve.simulator.run import Simulator, simulate
from selfserve.workload import load_trace, make_workload

SCENARIO = load_scenario("standard", {"load_machines": 1.0, "warmup_s": 0.0})
WORKLOAD = make_workload(load_trace("WITS-twin"), SCENARIO, 0, 60)


def routes(step=None, **fields):
    """Return the same route for each class: ``step``, or a step on the VMs with some fields changed."""
    step = Step(**({"pool": 0, "model": 0} | fields)) if step is None else step
    return tuple((Route((step,)),) for _ in SCENARIO.classes)


WRONG = {
    "nothing": (lambda: None, "returned None: right is a Decision"),
    "negative pool": (lambda: Decision((1, 0), routes(pool=-1)), "Step.pool is -1: right is 0 to 1"),
    "pool that is not there": (lambda: Decision((1, 0), routes(pool=2)), "Step.pool is 2: right is 0 to 1"),
    "pool by name": (lambda: Decision((1, 0), routes(pool="vm")), "Step.pool is 'vm'"),
    "model": (lambda: Decision((1, 0), routes(model=99)), "model 99 is not resident in pool 'vm'"),
    "late model": (lambda: Decision((1, 0), routes(late_model=99)), "model 99 is not resident"),
    "admit": (lambda: Decision((1, 0), routes(admit=9)), "Step.admit is 9: right is one of ALWAYS (0)"),
    "then": (lambda: Decision((1, 0), routes(then=7)), "Step.then is 7: right is one of DONE (0)"),
    "then at the end": (lambda: Decision((1, 0), routes(then=1)), "the last step of a route cannot say then=IF_UNSURE"),
    "slack": (lambda: Decision((1, 0), routes(leave_slack_s=float("nan"))), "Step.leave_slack_s is nan"),
    "late slack": (lambda: Decision((1, 0), routes(late_slack_s=float("inf"))), "Step.late_slack_s is inf"),
    "share": (lambda: Decision((1, 0), routes(unsure_share=2.0)), "Step.unsure_share is 2.0"),
    "no step": (lambda: Decision((1, 0), routes(step="vm")), "'vm' in a route: right is a Step"),
    "weight": (lambda: Decision((1, 0), tuple((Route((Step(0, 0),), float("inf")),) for _ in range(3))), "weights"),
    "routes": (lambda: Decision((1, 0), routes()[:2]), "Decision.routes has 2 entries: one for each of 3 classes"),
    "no routes": (lambda: Decision((1, 0), None), "Decision.routes is None"),
    "half a machine": (lambda: Decision((1.5, 0), routes()), "Decision.machines of pool 'vm' is 1.5: right is 0, 1"),
    "no number": (lambda: Decision((float("nan"), 0), routes()), "Decision.machines of pool 'vm' is nan"),
    "text": (lambda: Decision(("1", 0), routes()), "Decision.machines of pool 'vm' is '1'"),
    "fewer machines than none": (lambda: Decision((-1, 0), routes()), "Decision.machines of pool 'vm' is -1"),
    "machines": (lambda: Decision((1,), routes()), "Decision.machines has 1 entries: one for each of 2 pools"),
    "batches": (lambda: Decision((1, 0), routes(), (1,)), "Decision.batch_max has 1 entries"),
    "no batch": (lambda: Decision((1, 0), routes(), (0, 1)), "Decision.batch_max of pool 'vm' is 0: right is 1, 2"),
    "wait": (lambda: Decision((1, 0), routes(), (1, 1), (-1.0, 0.0)), "Decision.batch_wait_s of pool 'vm' is -1.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_decision_names_the_entry_and_changes_nothing(case):
    made, message = WRONG[case]
    simulator = Simulator(SCENARIO, WORKLOAD)
    simulator.reset(0)
    with pytest.raises(InputError) as error:
        simulator.advance(made())
    assert message in str(error.value) and "\n" not in str(error.value)
    assert simulator.now_ns == 0
    seen = [s.advance(Decision((1, 0), routes())) for s in (simulator, fresh())]
    assert np.array_equal(seen[0].served, seen[1].served) and np.array_equal(seen[0].queued, seen[1].queued)


def fresh():
    simulator = Simulator(SCENARIO, WORKLOAD)
    simulator.reset(0)
    return simulator


class Changing:
    """Edits the list of routes that it returned before."""

    interval_s = 10.0

    def __init__(self, outer):
        self.outer = outer

    def reset(self, scenario, history):
        self.routes, self.times = self.outer([Route((Step(0, 0),))] for _ in scenario.classes), 0

    def decide(self, seen):
        self.times += 1
        if self.times == 2:
            for mine in self.routes:
                mine[:] = [Route((Step(1, 0),))]
        return Decision((3, 0), self.routes)


@pytest.mark.parametrize("outer", [list, tuple])
def test_routes_that_a_policy_edits_in_place_count(outer):
    served = simulate(SCENARIO, WORKLOAD, Changing(outer)).summary["function_share_pct"]
    assert served > 50


USERS = """
class Mine:
    interval_s = {interval}

    def reset(self, scenario, history):
        {reset}

    def decide(self, seen):
        {decide}
"""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"decide": "return 1 / 0"}, "decide raised ZeroDivisionError: division by zero"),
        ({"decide": "raise ValueError('two\\nlines')"}, "decide raised ValueError: two lines"),
        ({"reset": "self.nothing.there"}, "reset raised AttributeError"),
        ({"decide": "raise SystemExit(3)"}, "decide raised SystemExit: 3"),
        ({"interval": "'ten'"}, "interval_s = 'ten'"),
        ({"interval": "1e-12"}, "interval_s = 1e-12"),
    ],
)
def test_what_a_users_policy_raises_ends_in_one_line(tmp_path, parts, message):
    file = tmp_path / "mine.py"
    file.write_text(USERS.format(**({"interval": "10.0", "reset": "pass", "decide": "pass"} | parts)))
    with pytest.raises(InputError) as error:
        simulate(SCENARIO, WORKLOAD, make_policy(f"{file}:Mine"))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "interval" in parts or "mine.py, line" in str(error.value)


def test_entries_may_be_arrays_and_numbers_of_numpy_and_are_logged():
    step = Step(np.int64(0), np.int64(0), 1, leave_slack_s=np.float32(0.5))
    every = tuple((Route((step, Step(1, 0)), np.int64(1)),) for _ in SCENARIO.classes)
    orders = Decision(np.array([2, 0]), every, np.array([4, 1]), np.array([0.01, 0.0]))

    class Mine:
        interval_s = 10.0

        def reset(self, scenario, history):
            pass

        def decide(self, observation):
            return orders

    log = simulate(SCENARIO, WORKLOAD, Mine(), decisions=True).decisions
    assert log["batch_max.vm"].eq(4).all() and log["machines.vm"].eq(2).all()
    assert log["routes.strict"].str.contains(f'"admit": "{Admit(1).name}"').all()
