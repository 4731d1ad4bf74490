"""The plan language: ops, the list, its passes, its printer and its cost model."""

from kvasir.plan.ops import Op, State, Value, Weight
from kvasir.plan.plan import Plan

__all__ = ["Op", "Plan", "State", "Value", "Weight"]
