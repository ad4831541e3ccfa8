"""At which level a model generalizes: splits, gaps with intervals, variance, attribution."""
