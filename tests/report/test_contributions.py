"""Intervals of what c and z contribute hold the truth where inputs are shared."""

from __future__ import annotations

import numpy as np
import pytest

from instructjax.report.contributions import Response, summarize_contributions

C, Z = 8, 30


def make_responses(rng: np.random.Generator) -> list[Response]:
    """One token each; all that an instruction adds, 2 nats, varies with the input it is given."""
    of_c, of_z = 0.1 * rng.standard_normal(C), rng.standard_normal(Z)
    responses = []
    for c in range(C):
        for z in range(Z):
            added = 2 + of_c[c] + of_z[z] + 0.2 * rng.standard_normal()
            log_probs = np.array([[added - 9], [-9.0], [-9.0], [-9.0]])
            responses.append(
                Response(id=f"{c} {z}", candidate=0, token_ids=np.array([1]), log_probs=log_probs)
            )
    return responses


def share(id: str) -> tuple[str, ...]:
    c, z = id.split()
    return c, z


def test_intervals_hold_the_truth_where_inputs_are_shared() -> None:
    rng = np.random.default_rng(0)
    held = {"both": 0, "instructions": 0}
    for _ in range(200):
        responses = make_responses(rng)
        for name, shared in (("both", share), ("instructions", lambda id: share(id)[:1])):
            found = summarize_contributions(responses, shared)[0]
            held[name] += abs(found.mean - 2) <= found.half_width
    assert 0.9 < held["both"] / 200 < 0.99
    assert held["instructions"] / 200 < 0.6


def test_tasks_hold_the_inputs_that_are_theirs() -> None:
    """What tasks share is all there is: the other ways are nested in them and change nothing."""
    responses = make_responses(np.random.default_rng(1))

    def in_task(id: str) -> tuple[str, ...]:
        c, z = share(id)
        return c, f"{c} {z}", c  # an instruction a task, inputs of its own

    found = summarize_contributions(responses, in_task)[0]
    means = [
        np.mean([r.log_probs[0, 0] + 9 for r in responses if r.id.startswith(f"{c} ")])
        for c in range(C)
    ]
    half = 2.364624 * np.std(means, ddof=1) / np.sqrt(C)  # Student's t on 7 degrees of freedom
    assert found.mean == pytest.approx(np.mean(means))
    assert found.half_width == pytest.approx(half, rel=1e-4)


def test_one_input_for_all_is_given() -> None:
    responses = make_responses(np.random.default_rng(2))
    one = summarize_contributions(responses, lambda id: (share(id)[0], ""))[0]
    same = summarize_contributions(responses, lambda id: share(id)[:1])[0]
    assert one.half_width == same.half_width
