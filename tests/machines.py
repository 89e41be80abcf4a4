"""How long state machines are let run: in CI the same examples each time, so that nothing flakes.

``MACHINE_EXAMPLES`` runs more of them, and other ones each time (at night: 2,000, say).
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "0"))


def run_machine(make: Any, examples: int, steps: int = 40, shrink: bool = True) -> None:
    """Run a state machine (its class, or what makes one) with so many examples of so many steps each."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    chosen = settings(
        max_examples=EXAMPLES or examples,
        stateful_step_count=steps,
        phases=phases,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(make, settings=chosen)


__all__ = ["RuleBasedStateMachine", "run_machine"]
