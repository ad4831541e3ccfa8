"""At which level a model generalizes: splits, gaps with intervals, variance, attribution.

Names are loaded when they are first used, so that splitting a file does not start JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructjax.generalization.analysis import Analysis, GapEstimates
    from instructjax.generalization.attribution import (
        Attribution,
        FollowingDifficulty,
        conditional_attribution,
        following_difficulty,
        pointwise_v_information,
        v_information,
    )
    from instructjax.generalization.bootstrap import (
        bootstrap_records,
        bootstrap_t_interval,
        crossed_bootstrap,
        draw_weights,
        nested_bootstrap,
        percentile_interval,
        rescaled_interval,
    )
    from instructjax.generalization.cells import (
        Gaps,
        cell_influence,
        cell_means,
        cell_weights,
        generalization_gaps,
        threshold_test,
    )
    from instructjax.generalization.cluster_se import (
        ClusterSE,
        mean_influence,
        multiway_cluster_se,
        one_way_variance,
        ratio_influence,
        t_interval,
    )
    from instructjax.generalization.components import (
        Components,
        NestedComponents,
        clip_components,
        components_in_tasks,
        variance_components,
    )
    from instructjax.generalization.contrasts import CellCovariance, cell_covariance, contrast_se
    from instructjax.generalization.decision_in_tasks import (
        TaskAllocation,
        d_study_in_tasks,
        optimal_allocation_in_tasks,
    )
    from instructjax.generalization.decision_study import (
        Allocation,
        d_study,
        g_coefficients,
        mean_se,
        model_components,
        optimal_allocation,
    )
    from instructjax.generalization.estimate import Estimate
    from instructjax.generalization.leaks import LeakRules, find_leaks
    from instructjax.generalization.marginal import (
        MarginalAttribution,
        marginal_attribution,
        marginal_token_log_probs,
    )
    from instructjax.generalization.min_k import (
        log_prob_moments,
        min_k_log_prob,
        min_k_pp,
        next_token_moments,
    )
    from instructjax.generalization.minhash import (
        estimate_jaccard,
        jaccard,
        minhash_signatures,
    )
    from instructjax.generalization.paired import (
        Comparison,
        benjamini_hochberg,
        compare_paired,
        holm,
        max_t,
    )
    from instructjax.generalization.planning import clusters_to_halve
    from instructjax.generalization.posix_index import posix
    from instructjax.generalization.quantiles import student_t_cdf, student_t_quantile
    from instructjax.generalization.rasch import RaschFit, rasch_complete, rasch_fit
    from instructjax.generalization.reml import RemlFit, fit_reml, reml_log_likelihood
    from instructjax.generalization.reml_in_tasks import (
        TaskRemlFit,
        fit_reml_in_tasks,
        reml_log_likelihood_in_tasks,
    )
    from instructjax.generalization.scaling import (
        Fit,
        fit_log_linear,
        fit_power_law,
        scaling_curve,
    )
    from instructjax.generalization.sensitivity import (
        PromptSummary,
        SpreadNoise,
        consistency_rate,
        multi_prompt_summary,
        performance_drop_rate,
        spread_noise,
    )
    from instructjax.generalization.split_folder import crossed_split
    from instructjax.generalization.split_recipes import SplitRecipe
    from instructjax.generalization.text_store import TextStore
    from instructjax.generalization.verdict import analyze
    from instructjax.generalization.word_hashes import hash_words

_FILES = {
    "analysis": ("Analysis", "GapEstimates"),
    "attribution": (
        "Attribution",
        "FollowingDifficulty",
        "conditional_attribution",
        "following_difficulty",
        "pointwise_v_information",
        "v_information",
    ),
    "bootstrap": (
        "bootstrap_records",
        "bootstrap_t_interval",
        "crossed_bootstrap",
        "draw_weights",
        "nested_bootstrap",
        "percentile_interval",
        "rescaled_interval",
    ),
    "cells": (
        "Gaps",
        "cell_influence",
        "cell_means",
        "cell_weights",
        "generalization_gaps",
        "threshold_test",
    ),
    "cluster_se": (
        "ClusterSE",
        "mean_influence",
        "multiway_cluster_se",
        "one_way_variance",
        "ratio_influence",
        "t_interval",
    ),
    "components": (
        "Components",
        "NestedComponents",
        "clip_components",
        "components_in_tasks",
        "variance_components",
    ),
    "contrasts": ("CellCovariance", "cell_covariance", "contrast_se"),
    "decision_in_tasks": ("TaskAllocation", "d_study_in_tasks", "optimal_allocation_in_tasks"),
    "decision_study": (
        "Allocation",
        "d_study",
        "g_coefficients",
        "mean_se",
        "model_components",
        "optimal_allocation",
    ),
    "estimate": ("Estimate",),
    "leaks": ("LeakRules", "find_leaks"),
    "marginal": ("MarginalAttribution", "marginal_attribution", "marginal_token_log_probs"),
    "min_k": ("log_prob_moments", "min_k_log_prob", "min_k_pp", "next_token_moments"),
    "minhash": ("estimate_jaccard", "jaccard", "minhash_signatures"),
    "paired": ("Comparison", "benjamini_hochberg", "compare_paired", "holm", "max_t"),
    "planning": ("clusters_to_halve",),
    "posix_index": ("posix",),
    "quantiles": ("student_t_cdf", "student_t_quantile"),
    "rasch": ("RaschFit", "rasch_complete", "rasch_fit"),
    "reml": ("RemlFit", "fit_reml", "reml_log_likelihood"),
    "reml_in_tasks": ("TaskRemlFit", "fit_reml_in_tasks", "reml_log_likelihood_in_tasks"),
    "scaling": ("Fit", "fit_log_linear", "fit_power_law", "scaling_curve"),
    "sensitivity": (
        "PromptSummary",
        "SpreadNoise",
        "consistency_rate",
        "multi_prompt_summary",
        "performance_drop_rate",
        "spread_noise",
    ),
    "split_folder": ("crossed_split",),
    "split_recipes": ("SplitRecipe",),
    "text_store": ("TextStore",),
    "verdict": ("analyze",),
    "word_hashes": ("hash_words",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "Allocation",
    "Analysis",
    "Attribution",
    "CellCovariance",
    "ClusterSE",
    "Comparison",
    "Components",
    "Estimate",
    "Fit",
    "FollowingDifficulty",
    "GapEstimates",
    "Gaps",
    "LeakRules",
    "MarginalAttribution",
    "NestedComponents",
    "PromptSummary",
    "RaschFit",
    "RemlFit",
    "SplitRecipe",
    "SpreadNoise",
    "TaskAllocation",
    "TaskRemlFit",
    "TextStore",
    "analyze",
    "benjamini_hochberg",
    "bootstrap_records",
    "bootstrap_t_interval",
    "cell_covariance",
    "cell_influence",
    "cell_means",
    "cell_weights",
    "clip_components",
    "clusters_to_halve",
    "compare_paired",
    "components_in_tasks",
    "conditional_attribution",
    "consistency_rate",
    "contrast_se",
    "crossed_bootstrap",
    "crossed_split",
    "d_study",
    "d_study_in_tasks",
    "draw_weights",
    "estimate_jaccard",
    "find_leaks",
    "fit_log_linear",
    "fit_power_law",
    "fit_reml",
    "fit_reml_in_tasks",
    "following_difficulty",
    "g_coefficients",
    "generalization_gaps",
    "hash_words",
    "holm",
    "jaccard",
    "log_prob_moments",
    "marginal_attribution",
    "marginal_token_log_probs",
    "max_t",
    "mean_influence",
    "mean_se",
    "min_k_log_prob",
    "min_k_pp",
    "minhash_signatures",
    "model_components",
    "multi_prompt_summary",
    "multiway_cluster_se",
    "nested_bootstrap",
    "next_token_moments",
    "one_way_variance",
    "optimal_allocation",
    "optimal_allocation_in_tasks",
    "percentile_interval",
    "performance_drop_rate",
    "pointwise_v_information",
    "posix",
    "rasch_complete",
    "rasch_fit",
    "ratio_influence",
    "reml_log_likelihood",
    "reml_log_likelihood_in_tasks",
    "rescaled_interval",
    "scaling_curve",
    "spread_noise",
    "student_t_cdf",
    "student_t_quantile",
    "t_interval",
    "threshold_test",
    "v_information",
    "variance_components",
]


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
