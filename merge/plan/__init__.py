"""What a merge of adapters would do, need and refuse, from headers and small files alone."""

from vlora.merge.plan.plan import AdapterPlan, make_adapter_plan

__all__ = ["AdapterPlan", "make_adapter_plan"]
