"""Who gets which GPU: laws that hold for every order of asking, ending and cancelling."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snakemake_executor_plugin_forge.backends.gpus import Devices, Grant

NODES = tuple(f"/dev/nvidia{number}" for number in range(4))


class Assignment(RuleBasedStateMachine):
    """Jobs ask, end and are cancelled; a model of what each has been told is checked after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = Devices(NODES)
        self.running: dict[str, tuple[str, ...]] = {}
        self.waiting: dict[str, int] = {}  # in the order of asking
        self.jobs = 0

    def _granted(self, grants: list[Grant]) -> None:
        for name, nodes in grants:
            assert name == next(iter(self.waiting)), "overtaken"
            assert len(nodes) == self.waiting.pop(name)
            self.running[name] = nodes

    @rule(count=st.integers(1, len(NODES)))
    def ask(self, count: int) -> None:
        self.jobs += 1
        name = f"job{self.jobs}"
        self.waiting[name] = count
        self._granted(self.devices.ask(name, count))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[name]
        self._granted(self.devices.release(name))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[name]
        self._granted(self.devices.release(name))

    @rule()
    def end_of_a_job_that_is_not_known(self) -> None:
        assert self.devices.release("nobody") == []

    @rule()
    def cancel_all_that_wait(self) -> None:
        assert self.devices.dismiss() == list(self.waiting)
        self.waiting.clear()

    @invariant()
    def no_device_has_two_jobs(self) -> None:
        taken = [node for nodes in self.running.values() for node in nodes]
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(NODES)

    @invariant()
    def nobody_waits_without_need(self) -> None:
        free = len(NODES) - sum(map(len, self.running.values()))
        assert not self.waiting or next(iter(self.waiting.values())) > free

    def teardown(self) -> None:
        """No starvation: when those that run end, all that wait get theirs."""
        while self.running:
            name = next(iter(self.running))
            del self.running[name]
            self._granted(self.devices.release(name))
        assert not self.waiting


TestAssignment = Assignment.TestCase
