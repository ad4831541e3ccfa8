r"""How sure a design of tasks with instructions and inputs of their own would be, and the best one.

With n_t tasks of n_c instructions, n_z inputs and n_r responses to each, from the components of
`fit_reml_in_tasks` (Brennan 2001, chapter 5): where inputs belong to tasks,

\(SE^2 = \frac{\sigma^2_t}{n_t} + \frac{\sigma^2_{c:t}}{n_t n_c} + \frac{\sigma^2_{z:t}}{n_t n_z}
+ \frac{\sigma^2_{cz:t}}{n_t n_c n_z} + \frac{\sigma^2_e}{n_t n_c n_z n_r}\);

where they belong to instructions, z is divided by n_t n_c n_z; where all tasks share them, by n_z,
and \(\sigma^2_{tz} / (n_t n_z)\) is added.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from instructjax.generalization.arrays import AnyArray
from instructjax.generalization.components import NestedComponents, clip_components
from instructjax.generalization.decision_study import Count
from instructjax.generalization.reml_in_tasks import InputsOf


class TaskAllocation(NamedTuple):
    """Attributes: tasks, instructions and inputs of each to take; the standard error they give."""

    tasks: Array
    instructions: Array
    inputs: Array
    se: Array


def d_study_in_tasks(
    components: NestedComponents,
    tasks: Count,
    instructions: Count,
    inputs: Count,
    responses: Count = 1,
    *,
    inputs_of: InputsOf = "tasks",
) -> Float[Array, "*_"]:
    """Standard error of a mean over tasks, in units of the score.

    Args:
      components: negative ones count as 0.
      tasks, instructions, inputs, responses: how many; of a task, of a task (of an instruction
        where inputs belong to those; in all where tasks share them), of an instruction and input.
      inputs_of: what inputs belong to, as in `fit_reml_in_tasks`.

    >>> parts = NestedComponents(*jnp.array([0.04, 0.08, 0.32, 0.64, 0.0, 0.0]))
    >>> round(float(d_study_in_tasks(parts, 4, 2, 8)), 4)  # sqrt(4 x 0.01)
    0.2
    """
    t, c, z, cz, tz, e = clip_components(components)
    n_t, n_c, n_z, n_r = (jnp.asarray(n, t.dtype) for n in (tasks, instructions, inputs, responses))
    of_z = {"tasks": n_t * n_z, "instructions": n_t * n_c * n_z, "none": n_z}[inputs_of]
    cells = n_t * n_c * n_z
    of_tasks = t / n_t + c / (n_t * n_c) + tz / (n_t * n_z)
    return jnp.sqrt(of_tasks + z / of_z + cz / cells + e / (cells * n_r))


def optimal_allocation_in_tasks(
    components: NestedComponents,
    budget: Float[AnyArray, ""] | float,
    *,
    inputs_of: InputsOf = "tasks",
    task_cost: float = 0.0,
    instruction_cost: float = 0.0,
    input_cost: float = 0.0,
    most_tasks: int = 1000,
    most_instructions: int = 100,
    most_inputs: int = 1_000_000,
) -> TaskAllocation:
    """The design with the smallest standard error that a budget pays for.

    A design costs one for each response, and what each task, instruction and input costs by itself,
    in responses. All numbers of tasks and instructions are tried, with as many inputs as can be
    paid. Without costs of their own, as many tasks as can be had are best.

    Args:
      components: of data like those to be made.
      budget: what may be spent, in responses.
      inputs_of: what inputs belong to, as in `fit_reml_in_tasks`.
      task_cost, instruction_cost, input_cost: of one more.
      most_tasks, most_instructions, most_inputs: how many there are at most, of a task.

    >>> parts = NestedComponents(*jnp.array([0.01, 0.0, 0.16, 0.0, 0.0, 0.0]))
    >>> best = optimal_allocation_in_tasks(parts, 400.0, task_cost=4.0)
    >>> int(best.tasks), int(best.instructions), int(best.inputs)  # sqrt(4 x 0.16 / 0.01) = 8
    (33, 1, 8)
    """
    sizes = jnp.arange(1, most_tasks + 1), jnp.arange(1, most_instructions + 1)
    n_t, n_c = (x.ravel() for x in jnp.meshgrid(*sizes))
    # How many different inputs one more of `inputs` is.
    copies = {"tasks": n_t, "instructions": n_t * n_c, "none": 1}[inputs_of]
    left = budget - n_t * task_cost - n_t * n_c * instruction_cost
    n_z = jnp.floor(left / (n_t * n_c + copies * input_cost) + 1e-5)
    n_z = jnp.clip(n_z, 0, most_inputs)
    se = d_study_in_tasks(components, n_t, n_c, jnp.maximum(n_z, 1), inputs_of=inputs_of)
    se = jnp.where(n_z >= 1, se, jnp.inf)
    best = jnp.argmin(se)
    return TaskAllocation(n_t[best], n_c[best], n_z[best].astype(int), se[best])
