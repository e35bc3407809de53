"""Policies: constraints compiled into thresholds that satisfy them, and thresholds turned into actions with reasons.

Example:
    >>> compiled = compile_policy(policy, table, labels)
    >>> compiled.decide(probabilities_NL, labels, presence_N)[0].action
    'remove'

Compiled policies need numpy and the standard library alone: the runtime loads them.
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.policy.compile import compile_policy as compile_policy
    from vigil_evaluation.policy.compiled_policy import ActionDecision as ActionDecision
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy as CompiledPolicy
    from vigil_evaluation.policy.compiled_policy import Reason as Reason
    from vigil_evaluation.policy.constraints import ConstraintResult as ConstraintResult
    from vigil_evaluation.policy.constraints import Rule as Rule
    from vigil_evaluation.policy.impact import PolicyImpact as PolicyImpact
    from vigil_evaluation.policy.impact import decisions_table as decisions_table
    from vigil_evaluation.policy.impact import policy_impact as policy_impact
    from vigil_evaluation.policy.infeasibility import InfeasiblePolicy as InfeasiblePolicy
    from vigil_evaluation.policy.replay import Replay as Replay
    from vigil_evaluation.policy.replay import ReplaySide as ReplaySide
    from vigil_evaluation.policy.specs import Policy as Policy

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ActionDecision": "vigil_evaluation.policy.compiled_policy",
        "CompiledPolicy": "vigil_evaluation.policy.compiled_policy",
        "ConstraintResult": "vigil_evaluation.policy.constraints",
        "InfeasiblePolicy": "vigil_evaluation.policy.infeasibility",
        "Policy": "vigil_evaluation.policy.specs",
        "PolicyImpact": "vigil_evaluation.policy.impact",
        "Reason": "vigil_evaluation.policy.compiled_policy",
        "Replay": "vigil_evaluation.policy.replay",
        "ReplaySide": "vigil_evaluation.policy.replay",
        "Rule": "vigil_evaluation.policy.constraints",
        "compile_policy": "vigil_evaluation.policy.compile",
        "decisions_table": "vigil_evaluation.policy.impact",
        "policy_impact": "vigil_evaluation.policy.impact",
    },
)
